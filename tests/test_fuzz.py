"""Random settings and command lines: each is a run, or a refusal of one line; never a traceback."""

import dataclasses
import os
import typing

import jax
import pytest
from commands import Commands
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_run

from configs import default
from nvae_jax import main
from nvae_jax.command_line import read_flags
from nvae_jax.config.overrides import FIELDS, check_name, parse_overrides, with_overrides
from nvae_jax.config.run import RunConfig, read_run
from nvae_jax.config.training import TrainingConfig
from nvae_jax.data.loading import LoadingConfig
from nvae_jax.data.sources import DATASETS
from nvae_jax.errors import ConfigError
from nvae_jax.fields import names_of
from nvae_jax.model import ModelConfig, variable_shapes
from nvae_jax.parallel import check_batch_size, make_mesh

# NVAE_JAX_EXAMPLES=1000 for a thorough search; the few of daily tests are always the same.
EXAMPLES = int(os.environ.get("NVAE_JAX_EXAMPLES", "40"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="NVAE_JAX_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)

SECTIONS = {"model": ModelConfig, "loading": LoadingConfig, "training": TrainingConfig}
WORDS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", "none", "nan", "~/x", "../..", "a\nb", "--x", "Straße", "名前", "🙂"]),
)
INTEGERS = st.one_of(st.integers(0, 8), st.integers(-(2**70), 2**70))
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    INTEGERS,
    st.floats(),
    WORDS,
    st.lists(INTEGERS, max_size=4),
    st.dictionaries(WORDS, INTEGERS, max_size=1),
)


def values_of(kind):
    """Values that a field of a type may have, most of them of that type."""
    literals = [x for option in (kind, *typing.get_args(kind)) for x in typing.get_args(option)]
    words = [x for x in literals if isinstance(x, str)]
    right = {int: INTEGERS, float: st.floats(), bool: st.booleans(), str: WORDS}
    fitting = [s for name, s in right.items() if kind is name or name in typing.get_args(kind)]
    fitting += [st.sampled_from(words)] if words else []
    fitting += [st.lists(st.integers(-1, 40), max_size=4)] if "tuple" in str(kind) else []
    return st.one_of(*fitting, *fitting, ANYTHING) if fitting else ANYTHING


@st.composite
def overridden(draw):
    """Settings of a dataset that needs nothing, with other values of some fields."""
    name = draw(st.sampled_from(sorted(DATASETS)))
    config = default.get_config(name).to_dict()
    classes = SECTIONS | {"data": DATASETS[name]}
    overrides = {"training.epochs": 2, "training.batch_size": 8, "training.warmup_epochs": 0}
    overrides |= {"model.num_groups": 1, "model.encoder_channels": 4, "model.decoder_channels": 4}
    for _ in range(draw(st.integers(0, 4))):
        section = draw(st.sampled_from(sorted(classes)))
        known = names_of(classes[section])
        if not known:
            continue
        field = draw(st.sampled_from(known))
        kind = typing.get_type_hints(classes[section])[field]
        overrides[f"{section}.{field}"] = draw(values_of(kind))
    return with_overrides(config, overrides)


def one_line(error):
    text = str(error)
    assert text
    assert "\n" not in text


@FUZZ
@given(overridden())
def test_settings_are_a_run_or_refused(values):
    try:
        run = read_run(values)
        check_batch_size(
            make_mesh(parameter_shards=run.training.parameter_shards),
            run.training.batch_size,
            "training.batch_size",
        )
    except ConfigError as error:
        one_line(error)
        return
    assert isinstance(run, RunConfig)
    assert read_run(run.to_dict()) == run
    model = run.model
    if model.total_groups <= 4 and model.latent_dimensions < 10**5:
        assert jax.tree.leaves(variable_shapes(model))


@FUZZ
@given(st.lists(st.tuples(st.sampled_from([*FIELDS, "x", ""]), WORDS, WORDS), max_size=3))
def test_overrides_are_fields_or_refused(arguments):
    try:
        found = parse_overrides([f"--config.{s}.{f}={value}" for s, f, value in arguments])
    except ConfigError as error:
        one_line(error)
        return
    for name in found:
        check_name(name)


@FUZZ
@given(st.data())
def test_options_are_those_of_the_mode_or_refused(data):
    mode = data.draw(st.sampled_from(sorted(main._OPTIONS)))
    names = sorted({n for options in main._OPTIONS.values() for n in names_of(options)})
    own = names_of(main._OPTIONS[mode]) or names
    keys = st.one_of(st.sampled_from(own), st.sampled_from(names))
    text = st.one_of(WORDS, INTEGERS.map(str), st.floats().map(str), st.just("1,2,3"))
    given_ = data.draw(st.dictionaries(keys, text, max_size=4))
    switches = {
        field.name
        for options in main._OPTIONS.values()
        for field in dataclasses.fields(options)
        if field.type in (bool, "bool")
    }
    given_ = {name: bool(value) if name in switches else value for name, value in given_.items()}
    try:
        options = read_flags(mode, main._OPTIONS, given_, main._ELSEWHERE)
    except ConfigError as error:
        one_line(error)
        return
    assert isinstance(options, main._OPTIONS[mode])


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make_run(folder / "run")
    commands = Commands(folder, HOME=str(folder))  # `~` is expanded
    yield commands
    commands.close()


PLAN = """
import nvae_jax.training.loop as loop, nvae_jax.modes.table as table, nvae_jax.data.prepare as data
plan = lambda *_: print("a plan", flush=True)
loop.train = data.prepare = plan
table.MODES.update({mode: (options, plan) for mode, (options, _) in table.MODES.items()})
"""


@settings(FUZZ, max_examples=max(6, EXAMPLES // 8))
@given(st.data())
def test_command_lines_are_plans_or_refused(commands, data):
    config = os.path.join(os.path.dirname(os.path.dirname(__file__)), "configs", "digits.py")
    word = WORDS.filter(lambda text: "\0" not in text and not text.startswith("@"))
    mode = data.draw(st.sampled_from(sorted(main._OPTIONS)))
    trains = mode in ("train", "prepare")
    fields = [f"config.{s}.{f}" for s in FIELDS for f in FIELDS[s]]
    own = names_of(main._OPTIONS[mode]) or ["mode"]
    name = st.one_of(
        st.sampled_from(fields if trains else own),
        st.sampled_from(own),
        st.sampled_from(["workdir", "mode", "seed", "batch_size", "results", "config", *fields]),
        word,
    )
    value = st.one_of(word, INTEGERS.map(str), st.sampled_from(["4", "1,2", "test:0", "vary"]))
    pairs = data.draw(st.lists(st.tuples(name, value), max_size=3))
    arguments = [f"--mode={mode}"]
    arguments += [f"--config={config}", "--workdir=new"] if trains else ["--workdir=run"]
    arguments += [f"--{key}={value}" for key, value in pairs if not key.startswith("help")]
    outcome = commands.run("nvae_jax.main", *arguments, before=PLAN)
    assert "Traceback" not in outcome.stderr
    if outcome.code == 0:
        assert "a plan" in outcome.stdout
    else:
        assert outcome.code == 2, outcome.stderr
        assert outcome.stderr.splitlines()[-1].startswith("refused: ")
