"""Plays an episode with a file of `m3dt export`: python examples/act_without_torch.py policy.onnx [Pendulum-v1] [SEED].

Needs onnxruntime, NumPy and the environment; neither torch nor m3dt-agent.
"""

import sys

import gymnasium as gym
import numpy as np
import onnxruntime as ort


def main(file: str, env_id: str = "Pendulum-v1", seed: str = "0") -> None:
    env, session = gym.make(env_id), ort.InferenceSession(file)
    history = np.zeros((1, *session.get_inputs()[3].shape[1:]), np.float32)
    state = {"history": history, "return_to_go": np.zeros(1), "timestep": np.zeros(1, np.int64)}
    (obs, _), reward, total, first, done = env.reset(seed=int(seed)), 0.0, 0.0, True, False
    while not done:
        now = {"observation": np.array([obs], np.float32), "reward": np.array([reward]), "reset": np.array([first])}
        action, *after = session.run(None, now | state)  # the action is in the environment's own bounds
        state, first = dict(zip(state, after, strict=True)), False
        obs, reward, terminated, truncated, _ = env.step(action[0])
        total, done = total + float(reward), terminated or truncated
    print(f"{env_id}: return {total:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
