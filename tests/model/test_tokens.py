"""Which token may look at which, and in what order steps become tokens."""

import torch
from model.test_prompt_dt import make_window

from m3dt_agent.config import ModelConfig
from m3dt_agent.model.tokens import TokenEmbedding, causal_mask


def test_a_token_looks_at_itself_and_at_real_tokens_before_it():
    prompt, window = torch.tensor([[False, True]]), torch.tensor([[False, True]])
    mask = causal_mask(prompt, window, 11)
    real = [False] * 3 + [True] * 3 + [False] * 3 + [True] * 2
    expected = [[i == j or (j < i and real[j]) for j in range(11)] for i in range(11)]
    assert mask.tolist() == [[expected]]


def test_tokens_are_return_state_and_action_of_each_step_in_turn():
    torch.manual_seed(0)
    embed = TokenEmbedding(ModelConfig.preset("tiny", max_timesteps=50))
    window = make_window(0, 3)
    tokens = embed(window)
    assert tokens.shape[1] == 9
    for t in range(3):
        time = embed.timestep(window.timesteps[:, t])
        of_step = (
            embed.return_to_go(window.returns_to_go[:, t]),
            embed.state(window.states[:, t]),
            embed.action(window.actions[:, t]),
        )
        for k, value in enumerate(of_step):
            torch.testing.assert_close(tokens[:, 3 * t + k], value + time)
