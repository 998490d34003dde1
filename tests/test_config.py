"""Settings: what is read, what is refused, and that every problem is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from topa.config import AlignConfig, ModelConfig, TrainConfig, dump_config, load_config
from topa.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "align.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(overrides: list[str], path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(AlignConfig, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_a_file_the_defaults_hold():
    config = load_config(AlignConfig, None)
    assert config == AlignConfig()
    assert (config.model.num_frames, config.model.adapter_length, config.model.bias) == (
        10,
        50,
        3.5,
    )
    assert config.data.tasks == {"choice": 0.5, "caption": 0.25, "open": 0.25}


def test_an_empty_file_means_the_defaults(tmp_path):
    assert load_config(AlignConfig, write(tmp_path, "# nothing yet\n")) == AlignConfig()


def test_file_and_overrides_are_laid_over_the_defaults(tmp_path):
    path = write(tmp_path, "model:\n  variant: adapter\n  num_frames: 6\ntrain: {seed: 3}\n")
    config = load_config(AlignConfig, path, ["model.num_frames=4", "out=runs/a b"])
    assert config.model.variant == "adapter"
    assert config.model.num_frames == 4
    assert config.train.seed == 3
    assert config.train.batch_size == 8
    assert config.out == "runs/a b"


def test_the_last_override_wins():
    config = load_config(AlignConfig, None, ["train.seed=1", "train.seed=2"])
    assert config.train.seed == 2


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", ".001", "1.0e-3"])
def test_numbers_are_read_as_people_write_them(text):
    """YAML 1.1 reads 1e-3 as a string."""
    config = load_config(AlignConfig, None, [f"train.learning_rate={text}"])
    assert config.train.learning_rate == 0.001


def test_null_and_booleans_in_overrides():
    config = load_config(
        AlignConfig, None, ["train.max_steps=5", "train.max_steps=null", "train.ridge_start=false"]
    )
    assert config.train.max_steps is None
    assert config.train.ridge_start is False


def test_one_entry_of_a_mapping_leaves_the_others():
    config = load_config(AlignConfig, None, ["data.tasks.open=0"])
    assert config.data.tasks == {"choice": 0.5, "caption": 0.25, "open": 0}
    assert AlignConfig().data.tasks["open"] == 0.25, "the default itself was changed"


def test_a_mapping_in_the_file_replaces_the_default(tmp_path):
    path = write(tmp_path, "data:\n  tasks: {choice: 1}\n")
    assert load_config(AlignConfig, path).data.tasks == {"choice": 1}


def test_all_problems_are_named_at_once(tmp_path):
    path = write(
        tmp_path, "model:\n  lora_rnk: 8\n  num_frames: ten\ntrain:\n  epochs: -1\nspeed: 3\n"
    )
    message = refusal(["data.noise=loud", "nonsense"], path)
    assert message.startswith(f"{path}: ")
    for part in [
        "model.lora_rnk: unknown key, did you mean model.lora_rank?",
        "model.num_frames: should be a valid integer, got 'ten'",
        "train.epochs: should be greater than 0, got -1",
        "data.noise: should be a valid number, got 'loud'",
        "'nonsense' is not of the form key=value",
        "speed: unknown key, known here: model, data, train, out",
    ]:
        assert part in message


def test_a_key_of_another_section_is_found():
    assert "lora_rank: unknown key, did you mean model.lora_rank?" in refusal(["lora_rank=8"])
    assert "did you mean train.seed?" in refusal(["data.seed=8"])


def test_a_misspelt_section_is_found():
    assert "modle: unknown key, did you mean model?" in refusal(["modle.llm=x"])


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("model.num_frames=0", "greater than 0"),
        ("model.num_frames=2.5", "valid integer"),
        ("model.num_frames=true", "valid integer"),
        ("model.num_frames='8'", "valid integer"),
        ("model.variant=prefix", "'adapter', 'lora' or 'projector'"),
        ("model.llm=", "valid string"),
        ("model.llm=''", "at least 1 character"),
        ("train.learning_rate=.inf", "finite number"),
        ("train.learning_rate=.nan", "finite number"),
        ("train.warmup=1", "less than 1"),
        ("train.ridge_start=1", "valid boolean"),
        ("data.blind=1.5", "less than or equal to 1"),
        ("data.tasks={}", "at least one task"),
        ("data.tasks={choice: 0}", "at least one task"),
        ("data.tasks={choice: -1}", "data.tasks.choice: should be greater than or equal to 0"),
        ("model=big", "model: a section is needed (llm, "),
        ("train.seed.first=1", "train.seed.first: train.seed is a value, not a section"),
        ("=3", "not of the form"),
        ("model..llm=3", "not of the form"),
        ("model.llm=[1", "model.llm: line 1"),
        ("model.llm={a: 1, a: 2}", "given twice"),
    ],
)
def test_refused(setting, part):
    assert part in refusal([setting])


def test_an_override_below_a_value_is_refused(tmp_path):
    path = write(tmp_path, "train:\n  seed: 4\n")
    assert "train.seed is a value, not a section" in refusal(["train.seed.first=1"], path)


def test_missing_settings_are_named():
    class Needy(BaseModel):
        model_config = ConfigDict(extra="forbid")
        video: str
        inner: ModelConfig

    with pytest.raises(ConfigError, match=r"video: missing; inner: missing"):
        load_config(Needy, None)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: [1\n", "not valid YAML"),
        ("- a\n", "a mapping of settings is needed, got list"),
        ("train:\n  seed: 1\n  seed: 2\n", "line 2, column 3: not valid YAML (the key 'seed'"),
        ("model: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_settings(tmp_path, text, part):
    path = write(tmp_path, text)
    message = refusal([], path)
    assert str(path) in message
    assert part in message


def test_files_that_cannot_be_read(tmp_path):
    assert "No such file" in refusal([], tmp_path / "none.yaml")
    assert "cannot be read" in refusal([], tmp_path)
    (tmp_path / "latin.yaml").write_bytes("out: é\n".encode("latin-1"))
    assert "UTF-8" in refusal([], tmp_path / "latin.yaml")


def test_wrong_settings_exit_with_2():
    assert ConfigError.exit_code == 2


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        AlignConfig().out = "elsewhere"


# Any text that a user may type: quotes, colons, digits, `1e5`, `no`, line breaks.
names = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1),
    st.sampled_from(
        ["1e5", "no", "null", "12", "0x1F", "2024-01-01", ".5", "~", "a: b", "# x", "="]
    ),
)
configs = st.builds(
    AlignConfig,
    model=st.builds(
        ModelConfig,
        llm=names,
        num_frames=st.integers(1, 64),
        adapter_layers=st.none() | st.integers(1, 32),
        bias=st.floats(-10, 10),
        variant=st.sampled_from(["adapter", "lora", "projector"]),
    ),
    train=st.builds(
        TrainConfig,
        learning_rate=st.floats(1e-12, 1e6),
        ridge_start=st.booleans(),
        seed=st.integers(0, 2**40),
    ),
    out=names,
)


@given(configs)
def test_what_is_dumped_reads_back_equal(tmp_path_factory, config):
    path = write(tmp_path_factory.getbasetemp(), dump_config(config))
    assert load_config(AlignConfig, path) == config


@given(configs)
def test_every_setting_can_be_given_as_an_override(config):
    overrides = []
    for section, values in config.model_dump().items():
        items = values.items() if isinstance(values, dict) else [("", values)]
        for key, value in items:
            text = yaml.dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
            # The plain dumper does not quote 1e5, which is a number here, and for good reason.
            if isinstance(value, str):
                text = yaml.dump(value, default_style='"', allow_unicode=True, width=10**9)
            name = f"{section}.{key}" if key else section
            overrides.append(f"{name}={text.removesuffix(chr(10)).removesuffix('...')}")
    assert load_config(AlignConfig, None, overrides) == config
