"""The loopback Hub's `validate-yaml`: the front matter of a README, checked as the Hub documents it.

    ---
    license: apache-2.0        the YAML between the first two lines of three dashes
    ---
    # Title

Sources: huggingface.co/docs/hub/model-cards, datasets-cards, repositories-licenses, and the specifications that they link to
(`modelcard.md`, `datasetcard.md` in the Hub's documentation repository).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

LICENSE_LIST = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause
bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0
cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 llama2 llama3 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openrail osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
SIZE_LIST = "n<1K 1K<n<10K 10K<n<100K 100K<n<1M 1M<n<10M 10M<n<100M 100M<n<1B 1B<n<10B 10B<n<100B 100B<n<1T n>1T"
LICENSES, SIZES = frozenset(LICENSE_LIST.split()), frozenset(SIZE_LIST.split())
TASK_CATEGORIES = frozenset({"reinforcement-learning", "robotics", "tabular-regression", "time-series-forecasting", "other"})
FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


@dataclass
class Findings:
    """What is wrong with a card: errors refuse it, warnings do not."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def require(self, holds: bool, message: str) -> bool:
        """Note an error unless something holds; returns whether it does."""
        if not holds:
            self.errors.append(message)
        return holds

    def as_json(self) -> dict[str, Any]:
        """The Hub's answer."""
        return {"errors": [{"message": m} for m in self.errors], "warnings": [{"message": m} for m in self.warnings]}


def front_matter(content: str) -> Any:
    """The YAML on top of a README; None where there is none.

    Raises:
        yaml.YAMLError: it cannot be parsed.
    """
    match = FRONT_MATTER.match(content)
    return yaml.safe_load(match[1]) if match else None


def card_data(content: str) -> dict[str, Any]:
    """The front matter of a README that is shown, empty where it is no mapping: a repository is listed all the same."""
    try:
        data = front_matter(content)
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def validate_card(content: str, repo_type: str) -> Findings:
    """Check the README of a "model" or a "dataset"."""
    found = Findings()
    try:
        data = front_matter(content)
    except yaml.YAMLError as error:
        found.errors.append(f"Invalid YAML: {error}")
        return found
    if data is None:
        found.warnings.append("empty or missing yaml metadata in repo card")
    elif found.require(isinstance(data, dict), "YAML metadata must be an object"):
        for key, check in {**COMMON, **(DATASET if repo_type == "dataset" else MODEL)}.items():
            if key in data:
                check(found, f'"{key}"', data[key])
    return found


Check = Callable[[Findings, str, Any], Any]


def is_text(found: Findings, name: str, value: Any) -> bool:
    return found.require(isinstance(value, str) and bool(value), f"{name} must be a non-empty string")


def is_texts(found: Findings, name: str, value: Any) -> bool:
    if not found.require(isinstance(value, list), f"{name} must be an array"):
        return False
    fine = [is_text(found, f"{name}[{i}]", item) for i, item in enumerate(value)]
    return all(fine)


def is_text_or_texts(found: Findings, name: str, value: Any) -> bool:
    return is_text(found, name, value) if isinstance(value, str) else is_texts(found, name, value)


def is_license(found: Findings, name: str, value: Any) -> None:
    if is_text_or_texts(found, name, value):
        for item in [value] if isinstance(value, str) else value:
            found.require(item in LICENSES, f"{name} must be one of [{', '.join(sorted(LICENSES))}]; got {item!r}")


def is_sizes(found: Findings, name: str, value: Any) -> None:
    if is_text_or_texts(found, name, value):
        for item in [value] if isinstance(value, str) else value:
            found.require(item in SIZES, f"{name} must be one of [{', '.join(sorted(SIZES))}]; got {item!r}")


def is_task_categories(found: Findings, name: str, value: Any) -> None:
    if is_texts(found, name, value):
        found.warnings += [f"{name} {item!r} is not in the official list" for item in value if item not in TASK_CATEGORIES]


def is_configs(found: Findings, name: str, value: Any) -> None:
    if not found.require(isinstance(value, list), f"{name} must be an array"):
        return
    for i, config in enumerate(value):
        if has_fields(found, f"{name}[{i}]", config, {"config_name": is_text}) and "data_files" in config:
            files = config["data_files"]
            shapes = isinstance(files, str) or (isinstance(files, list) and all(isinstance(f, str | dict) for f in files))
            found.require(shapes, f"{name}[{i}].data_files must be a string, or an array of strings or objects")


def is_model_index(found: Findings, name: str, value: Any) -> None:
    if found.require(isinstance(value, list), f"{name} must be an array"):
        for i, entry in enumerate(value):
            has_fields(found, f"{name}[{i}]", entry, {"name": is_text, "results": is_results})


def is_results(found: Findings, name: str, value: Any) -> None:
    if found.require(isinstance(value, list), f"{name} must be an array"):
        for i, result in enumerate(value):
            has_fields(found, f"{name}[{i}]", result, {"task": is_task, "dataset": is_dataset, "metrics": is_metrics})


def is_task(found: Findings, name: str, value: Any) -> None:
    has_fields(found, name, value, {"type": is_text})


def is_dataset(found: Findings, name: str, value: Any) -> None:
    has_fields(found, name, value, {"type": is_text, "name": is_text})


def is_metrics(found: Findings, name: str, value: Any) -> None:
    if found.require(isinstance(value, list) and bool(value), f"{name} must be a non-empty array"):
        for i, metric in enumerate(value):
            has_fields(found, f"{name}[{i}]", metric, {"type": is_text, "value": is_value})


def is_value(found: Findings, name: str, value: Any) -> None:
    found.require(
        isinstance(value, int | float | str | list | dict), f"{name} must be a number, a string, an array or an object"
    )
    found.require(value == value, f"{name} must not be NaN")


def has_fields(found: Findings, name: str, value: Any, fields: dict[str, Check]) -> bool:
    """Check the required fields of an object."""
    if not found.require(isinstance(value, dict), f"{name} must be an object"):
        return False
    for key, check in fields.items():
        if found.require(key in value, f"{name}.{key} is required"):
            check(found, f"{name}.{key}", value[key])
    return True


COMMON: dict[str, Check] = {"license": is_license, "tags": is_texts, "language": is_text_or_texts}
MODEL: dict[str, Check] = {
    "library_name": is_text,
    "pipeline_tag": is_text,
    "datasets": is_text_or_texts,
    "metrics": is_text_or_texts,
    "model_name": is_text,
    "model-index": is_model_index,
}
DATASET: dict[str, Check] = {
    "pretty_name": is_text,
    "size_categories": is_sizes,
    "task_categories": is_task_categories,
    "configs": is_configs,
}
