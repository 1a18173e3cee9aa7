"""docs/ENGINE_FIELDS.md names every field of the engines' configuration, and what it says is what the code does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import transformers

from kvclient.transformers import spec as transformers_spec
from kvclient.vllm.fields import NOT_COUNTED, OWN_FIELDS, counted, hugging_face
from support.engine_fields_page import read_page

TABLES = read_page()


def test_the_page_and_the_code_say_the_same() -> None:
    for name, left_out in NOT_COUNTED.items():
        table = TABLES[name]
        assert {field for field, says in table.items() if says == "no"} == set(left_out), name
        assert OWN_FIELDS.get(name, frozenset()) <= {field for field, says in table.items() if says != "no"}, name
        assert set(table.values()) <= {"yes", "no", "sometimes"}, name


# ---- vLLM ----


@pytest.fixture(scope="module")
def vllm_config() -> Any:
    return pytest.importorskip("vllm.config", reason="vLLM is not installed (scripts/python_env.sh --vllm)")


def test_the_page_has_every_field_of_the_installed_vllm(vllm_config: Any) -> None:
    lacking = {
        f"{name}.{field.name}"
        for name in NOT_COUNTED
        for field in dataclasses.fields(getattr(vllm_config, name))
        if field.name not in TABLES[name]
    }
    assert not lacking, f"docs/ENGINE_FIELDS.md and kvclient/vllm/fields.py must say what these do: {sorted(lacking)}"


def bare(kind: type) -> Any:
    """An instance without its constructor, all fields None: validation would forbid most combinations."""
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(made, field.name, None)
    return made


#: Where each class hangs below VllmConfig.
PATHS = {
    "VllmConfig": (),
    "ModelConfig": ("model_config",),
    "CacheConfig": ("cache_config",),
    "ParallelConfig": ("parallel_config",),
    "SchedulerConfig": ("scheduler_config",),
    "LoRAConfig": ("lora_config",),
    "SpeculativeConfig": ("speculative_config",),
    "AttentionConfig": ("attention_config",),
    "CompilationConfig": ("compilation_config",),
    "KernelConfig": ("kernel_config",),
    "MultiModalConfig": ("model_config", "multimodal_config"),
}


def test_every_class_of_the_page_is_reached() -> None:
    assert set(PATHS) == set(NOT_COUNTED)


@pytest.mark.parametrize("name", sorted(PATHS))
def test_each_field_that_changes_bytes_changes_what_is_counted_and_no_other_does(vllm_config: Any, name: str) -> None:
    def whole(field: str, value: Any) -> dict[str, Any]:
        made = bare(vllm_config.VllmConfig)
        at = made
        for step in PATHS[name]:
            kind = next(each for each, path in PATHS.items() if path and path[-1] == step)
            setattr(at, step, bare(getattr(vllm_config, kind)))
            at = getattr(at, step)
        if field:
            object.__setattr__(at, field, value)
        return counted(made)

    plain = whole("", None)
    has = {field.name for field in dataclasses.fields(getattr(vllm_config, name))}
    for field, says in TABLES[name].items():
        if field not in has:  # of another release
            continue
        changed = whole(field, "another") != plain
        assert changed == (says == "yes" and field not in OWN_FIELDS.get(name, frozenset())), f"{name}.{field}"


def test_a_field_that_nobody_knows_counts(vllm_config: Any) -> None:
    @dataclasses.dataclass
    class CacheConfig(vllm_config.CacheConfig):  # type: ignore[misc]
        of_a_newer_release: str = ""

    def whole(value: str) -> dict[str, Any]:
        made = bare(vllm_config.VllmConfig)
        made.cache_config = bare(CacheConfig)
        made.cache_config.of_a_newer_release = value
        return counted(made)

    assert whole("a") != whole("b")


def test_a_draft_counts_and_what_only_proposes_tokens_does_not(vllm_config: Any) -> None:
    def whole(method: str, tokens: int) -> dict[str, Any]:
        made = bare(vllm_config.VllmConfig)
        made.speculative_config = bare(vllm_config.SpeculativeConfig)
        made.speculative_config.method, made.speculative_config.num_speculative_tokens = method, tokens
        return counted(made)

    assert whole("eagle", 1) != whole("eagle", 2)
    assert whole("ngram", 1) == whole("ngram", 2) == counted(bare(vllm_config.VllmConfig))


def test_data_parallel_ranks_of_a_dense_model_share_and_of_experts_do_not(vllm_config: Any) -> None:
    def whole(moe: bool, ranks: int) -> dict[str, Any]:
        made = bare(vllm_config.VllmConfig)
        made.parallel_config = bare(vllm_config.ParallelConfig)
        made.parallel_config.is_moe_model, made.parallel_config.data_parallel_size = moe, ranks
        return counted(made)

    assert whole(False, 1) == whole(False, 8)
    assert whole(True, 1) != whole(True, 8)


# ---- Hugging Face ----


def test_the_page_has_every_field_of_the_installed_transformers() -> None:
    config = transformers.PretrainedConfig()
    table = TABLES["Hugging Face configurations"]
    lacking = {name for name in {*config.to_dict(), *vars(config)} if name not in table}
    assert not lacking, f"docs/ENGINE_FIELDS.md must say what these do: {sorted(lacking)}"
    generation = {*transformers.GenerationConfig().to_dict(), *vars(transformers.GenerationConfig())}
    lacking = {name for name in generation if name not in TABLES["GenerationConfig"]}
    assert not lacking, f"docs/ENGINE_FIELDS.md must say what these do: {sorted(lacking)}"


def changed(name: str) -> dict[str, Any]:
    class Config(transformers.PretrainedConfig):  # type: ignore[misc]
        def to_dict(self) -> dict[str, Any]:
            return {**super().to_dict(), name: "another"}

    return Config().to_dict()


def test_each_field_of_a_hugging_face_configuration_counts_as_the_page_says() -> None:
    class Given:
        def __init__(self, settings: Mapping[str, Any]) -> None:
            self.to_dict = lambda: dict(settings)

    plain = transformers.PretrainedConfig().to_dict()
    for name, says in TABLES["Hugging Face configurations"].items():
        ours = changed(name)
        if says == "no":
            assert hugging_face(Given(ours)) == hugging_face(Given(plain)), name
        elif name in plain:
            assert hugging_face(Given(ours)) != hugging_face(Given(plain)), name
    assert hugging_face(Given({"text_config": {"rms_norm_eps": 1}})) != hugging_face(
        Given({"text_config": {"rms_norm_eps": 2}})
    )
    assert hugging_face(Given({"text_config": {"_name_or_path": "a"}})) == hugging_face(
        Given({"text_config": {"_name_or_path": "b"}})
    )


def test_what_transformers_specs_leave_out_is_on_the_page_or_has_a_field() -> None:
    table = TABLES["Hugging Face configurations"]
    for name in transformers_spec._IRRELEVANT:
        assert table.get(name) in ("no", "field", "vLLM only"), name
