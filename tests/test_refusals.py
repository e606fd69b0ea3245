"""Every command refuses what is impossible: exit code 2, and one line that names the cause."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import pytest
from commands import ROOT, Commands
from PIL import Image
from tiny import RUN_CONFIG, make_run

COLOUR = dataclasses.replace(
    RUN_CONFIG, image_shape=(32, 32, 3), border=0, likelihood="logistic_mixture"
)
MAIN = "nvae_jax.main"
DIGITS = "--config={root}/configs/digits.py"
FOLDER = "--config={root}/configs/image_folder.py"
ARRAYS = "--config={there}/arrays.py"
RUN = "--workdir={there}/run"
NEW = "--workdir={there}/new"
SIZE_50 = "data.size is 50, so that model.image_shape is (50, 50, 3); allowed: a height and width"
# What a file is that is no checkpoint, which only PyTorch can tell.
UNREADABLE = "{there}/file" if importlib.util.find_spec("torch") else "pip install"

TRAIN = [
    ([], "--config"),
    ([DIGITS], "--workdir"),
    (["--config=absent.py", NEW], "absent.py"),
    (["--config={there}", NEW], "{there}"),
    (["--config={there}/broken.py", NEW], "broken.py"),
    (["--config={there}/raises.py", NEW], "no such thing"),
    (["--config={root}/configs/image_folder.py:tpu", NEW], "'image_folder.py:tpu'; allowed: cpu32"),
    (["--config={there}/value_error.py", NEW], "value_error.py: ValueError: no such value"),
    (["--config={there}/type_error.py", NEW], "type_error.py: TypeError: "),
    ([DIGITS, NEW, "stray"], "stray"),
    ([DIGITS, NEW, "--nonsense=1"], "nonsense"),
    ([DIGITS, NEW, "--mode=dream"], "dream"),
    ([DIGITS, NEW, "--config.training.nope=1"], "config.training.nope is unknown; allowed: epochs"),
    ([DIGITS, NEW, "--config.training.lr=1"], "lr is unknown; did you mean learning_rate? allowed"),
    (
        [DIGITS, NEW, "--config.model.num_group=1"],
        "did you mean num_groups? allowed: name, image_shape",
    ),
    ([DIGITS, NEW, "--config.traning.seed=1"], "config.traning is unknown; did you mean training?"),
    ([DIGITS, NEW, "--config.extra=1"], "config.extra is unknown; allowed: model, data"),
    ([DIGITS, NEW, "--config=twice"], "twice"),
    ([DIGITS, NEW, "--batch_size=4"], "did you mean --config.training.batch_size? allowed: accept"),
    ([DIGITS, NEW, "--seed=7"], "--seed is not an option of mode train; did you mean --config.tr"),
    ([DIGITS, NEW, "--num_images=7"], "--num_images is not an option of mode train; allowed: acc"),
    ([DIGITS, NEW, "--results={there}/x"], "--results is '{there}/x'; allowed: other modes than"),
    ([DIGITS, "--mode=prepare", "--accept_changes"], "is not an option of mode prepare"),
    ([DIGITS, NEW, "--num_processes=2", "--process_id=0"], "--num_processes is 2; allowed: with"),
    ([NEW], "--config is None; allowed: a configuration, or --workdir of a run that exists"),
    ([NEW, "--config.training.seed=1"], "--config is None"),
    ([RUN, "--config.training.lr=1"], "did you mean learning_rate?"),
    ([RUN, "--config.training.seed"], "section.field=value"),
    ([RUN, "--config.training.seed=often"], "training.seed is 'often'"),
    (["--workdir={there}/garbled"], "{there}/garbled/config.json"),
    (["--workdir={there}/nested"], "{there}/nested/config.json"),
    (["--workdir={there}/blocked"], "{there}/blocked/checkpoints"),
    (["--workdir={there}/unknown"], "model.depth is unknown"),
    ([DIGITS, NEW, "--config.data.size=16"], "data.size is 16, but digits has no such option"),
    ([DIGITS, NEW, "--config.training.seed=often"], "often"),
    ([DIGITS, NEW, "--config.training.batch_size=0"], "training.batch_size is 0"),
    ([DIGITS, NEW, "--config.training.batch_size=4096"], "training.batch_size is 4096"),
    ([DIGITS, NEW, "--config.training.batch_size=12"], "training.batch_size is 12"),
    ([DIGITS, NEW, "--config.training.eval_batch_size=100"], "training.eval_batch_size is 100"),
    ([DIGITS, NEW, "--config.training.warmup_epochs=99"], "training.warmup_epochs is 99"),
    ([DIGITS, NEW, "--config.training.kl_balance=fair"], "training.kl_balance is 'fair'"),
    ([DIGITS, NEW, "--config.training.parameter_shards=3"], "training.parameter_shards is 3"),
    ([DIGITS, NEW, "--config.loading.prefetch=0"], "loading.prefetch is 0"),
    ([DIGITS, NEW, "--config.model.num_groups=0"], "model.num_groups is 0"),
    ([DIGITS, NEW, "--config.model.architecture=vgg"], "model.architecture is 'vgg'"),
    ([DIGITS, NEW, "--config.model.image_shape=(64, 64, 3)"], "model.image_shape is (64, 64, 3)"),
    ([DIGITS, NEW, "--config.model.border=0"], "model.border is 0"),
    ([DIGITS, NEW, "--config.model.likelihood=normal"], "model.likelihood is 'normal'"),
    ([DIGITS, NEW, "--config.model.num_scales=9"], "model.image_shape is (32, 32, 1)"),
    ([DIGITS, NEW, "--config.model.remat=offload"], "model.remat is 'offload'"),
    ([DIGITS, NEW, "--config.data.name=cats"], "data.name is 'cats'"),
    ([DIGITS, "--workdir={there}/file"], "{there}/file"),
    ([DIGITS, "--workdir=/proc/new"], "/proc/new"),
    ([DIGITS, RUN], "{there}/run"),
    ([DIGITS, "--workdir={there}/garbled"], "{there}/garbled/config.json"),
    ([DIGITS, NEW, "--process_id=1"], "--process_id is 1"),
    ([FOLDER, NEW], "data.path is missing"),
    ([FOLDER, NEW, "--config.data.path={there}/absent"], "{there}/absent"),
    ([FOLDER, NEW, "--config.data.path={there}/file"], "{there}/file"),
    ([FOLDER, NEW, "--config.data.path={there}/empty"], "{there}/empty"),
    ([FOLDER, NEW, "--config.data.path={there}/damaged"], "b.png"),
    ([FOLDER, NEW, "--config.data.path={there}/single"], "data.path is "),
    ([FOLDER, NEW, "--config.data.path={there}/single", "--config.data.size=50"], SIZE_50),
    ([FOLDER, NEW, "--config.data.path={there}/single", "--config.data.fit=bend"], "'bend'"),
    ([FOLDER, NEW, "--config.data.path=x", "--config.data.size=48,50"], "size is (48, 50), so"),
    ([FOLDER, NEW, "--config.data.path=x", "--config.data.size=99999"], "data.size is 99999; allo"),
    ([FOLDER, "--workdir={there}/few/run", "--config.data.path={there}/few"], "{there}/few/run"),
    ([FOLDER, "--workdir={there}/few", "--config.data.path={there}/few"], "outside of that of the"),
    (["--workdir={there}/on_photos", "--config.data.path=2024"], "data.path is '2024'; allowed: a"),
    ([FOLDER, NEW, "--config.data.path=x", "--config.data.size=8,8,8"], "a list of 2: int, int"),
    ([FOLDER, NEW, "--config.data.path=x", "--config.data.size=wide"], "data.size is 'wide'"),
    ([ARRAYS, NEW, "--config.data.path={there}/absent.npz"], "{there}/absent.npz"),
    ([ARRAYS, NEW, "--config.data.path={there}/file"], "{there}/file"),
    ([ARRAYS, NEW, "--config.data.path={there}/empty"], "train.npy"),
    (
        ["--config={root}/configs/cifar10.py", NEW, "--config.data.data_dir={there}/empty"],
        "cifar10",
    ),
    (["--config={root}/configs/ffhq256.py", NEW, "--config.data.lmdb={there}/empty"], "train.lmdb"),
    (["--config={root}/configs/ffhq256.py", NEW, "--config.data.lmdb={there}/damaged"], "LMDB"),
    ([DIGITS, "--mode=prepare", "--config.data.name=cats"], "data.name is 'cats'"),
    ([FOLDER, "--mode=prepare", "--config.data.path={there}/empty"], "{there}/empty"),
    (
        ["--config={root}/configs/mnist.py", "--mode=prepare", "--config.data.data_dir=/proc/x"],
        "/proc/x",
    ),
]

MODES = {
    "evaluate": [],
    "sample": [],
    "codes": [],
    "encode": [],
    "decode": ["--latents={there}/latents.npz"],
    "reconstruct": [],
    "interpolate": [],
    "edit": ["--operation=vary"],
    "neighbors": [],
    "fid": ["--weights={there}/file.pth"],
}
# What is wrong with a run is refused by every mode.
OF_ALL_MODES = [
    ([], "--workdir"),
    (["--workdir={there}/absent"], "{there}/absent"),
    (["--workdir={there}/empty"], "{there}/empty"),
    (["--workdir={there}/file"], "{there}/file"),
    (["--workdir={there}/garbled"], "{there}/garbled/config.json"),
    (["--workdir={there}/nested"], "{there}/nested/config.json"),
    (["--workdir={there}/blocked"], "{there}/blocked/checkpoints"),
    (["--workdir={there}/unknown"], "model.depth is unknown"),
    (["--workdir={there}/untrained"], "{there}/untrained/checkpoints"),
    (["--workdir={there}/torn"], "{there}/torn/checkpoints/7"),
    ([RUN, "--config.data.path={there}"], "config.data.path is '{there}'"),
    ([RUN, "--batch_size=few"], "batch_size is 'few'"),
    ([RUN, "--seed=-1"], "seed is -1"),
    ([RUN, "--results={there}/file/below"], "{there}/file/below cannot be written"),
    ([RUN, "--results={there}/file"], "--results is '{there}/file'; allowed: a folder"),
    ([RUN, "--accept_changes"], "--accept_changes is not an option of mode"),
    ([RUN, "--config.model.num_groups=3"], "config.model.num_groups is 3; allowed: data.path"),
    ([RUN, DIGITS, "--config.training.seed=3"], "config.training.seed is 3; allowed: data.path"),
]
OF_ONE_MODE = [
    ("export", ["--platforms=vulkan"], "platforms is ('vulkan',)"),
    ("view", ["--port=0"], "port is 0"),
    ("evaluate", ["--split=dev"], "split is 'dev'"),
    ("evaluate", ["--images=10000"], "images is 10000"),
    ("evaluate", ["--temperature=1"], "--temperature"),
    ("codes", ["--images=1"], "images is 1"),
    ("sample", ["--num_images=0"], "num_images is 0"),
    ("sample", ["--num_images=999999999"], "here, or --output=files"),
    ("sample", ["--batch_size=1000000"], "batch_size is 1000000; allowed: 1 to 65536"),
    ("evaluate", ["--draws=10000000000"], "draws is 10000000000; allowed: 1 to 1000000000"),
    ("sample", ["--temperature=1,1,1"], "temperature is (1.0, 1.0, 1.0)"),
    ("sample", ["--pixels=mode"], "pixels is 'mode'"),
    ("encode", ["--images=test:5000"], "images is 'test:5000'"),
    ("encode", ["--images={there}/absent.png"], "{there}/absent.png"),
    ("encode", ["--images={there}/damaged/b.png"], "{there}/damaged/b.png"),
    ("decode", [], "--latents is missing, which mode decode requires; allowed: an .npz file"),
    ("decode", ["--latents={there}/array.npz"], "array.npz', which cannot be read (it is an .npy"),
    ("decode", ["--latents={there}/absent.npz"], "{there}/absent.npz"),
    ("decode", ["--latents={there}/file"], "{there}/file"),
    ("decode", ["--latents={there}/latents.npz"], "{there}/latents.npz"),
    ("reconstruct", ["--keep=7"], "keep is (7,)"),
    ("interpolate", ["--steps=1"], "steps is 1"),
    ("edit", [], "operation"),
    ("edit", ["--operation=inpaint", "--region=0,0,99,1"], "region is (0, 0, 99, 1)"),
    ("edit", ["--operation=inpaint", "--region=3,3,0,5"], "region is (3, 3, 0, 5)"),
    ("neighbors", ["--nearest=5000"], "nearest is 5000"),
    ("fid", [], "weights"),
    ("fid", ["--weights={there}/absent.pb"], "{there}/absent.pb"),
    ("fid", ["--weights={there}/file"], "{there}/file"),
    ("fid", ["--weights={there}/file.pb"], "{there}/file.pb"),
]
# Data that was there when the model was trained.
WITHOUT_DATA = [
    ("evaluate", [], "{there}/photos"),
    ("reconstruct", [], "{there}/photos"),
    ("neighbors", [], "{there}/photos"),
    ("encode", ["--config.data.path={there}/empty"], "{there}/empty"),
]

TOOLS = [
    ("import_official", ["{there}/absent.pt", NEW], "{there}/absent.pt"),
    ("import_official", ["{there}/file", RUN], "{there}/run"),
    ("import_official", [], "checkpoint"),
    ("benchmark", [], "--config"),
    ("benchmark", ["--config={there}/absent.py"], "{there}/absent.py"),
    ("benchmark", ["--config={there}/broken.py"], "{there}/broken.py"),
    ("benchmark", ["--config={there}/file.json"], "{there}/file.json"),
    ("benchmark", [DIGITS, "--what=cook"], "cook"),
    ("benchmark", [DIGITS, "--config.training.nope=1"], "training.nope is unknown"),
    ("benchmark", [DIGITS, "--config.training.batch_size=many"], "'many'"),
    ("benchmark", [DIGITS, "--config.model.num_groups=0"], "model.num_groups is 0"),
    ("benchmark", ["--compare", "{there}/absent.json"], "{there}/absent.json"),
    ("benchmark", [DIGITS, "--json={there}/absent/x.json"], "{there}/absent/x.json"),
    ("benchmark", [DIGITS, "--json={there}/empty"], "{there}/empty"),
    ("aot", ["--config={there}/absent.py", "--topology=v5e:2x4"], "{there}/absent.py"),
    ("aot", [DIGITS, "--topology=v5e:2x4", "--config.model.num_groups=0"], "model.num_groups is 0"),
    ("costs", ["{there}/absent.json"], "{there}/absent.json"),
    ("aot", [DIGITS, "--json={there}/absent/x.json"], "{there}/absent/x.json"),
    ("aot", [DIGITS, "--json={there}/empty"], "{there}/empty"),
    ("costs", [DIGITS, "--config.model.depth=3"], "depth"),
    ("compare", ["a={there}/absent", "--output={there}/x.png"], "{there}/absent"),
    ("compare", ["{there}/run", "--output={there}/x.png"], "{there}/run"),
    ("compare", ["a={there}/run", "--output={there}/absent/x.png"], "{there}/absent/x.png"),
    ("gallery", ["{there}/absent"], "{there}/absent"),
    ("gallery", ["{there}/run", "--output={there}/file"], "{there}/file/gallery/run"),
    ("benchmark", [DIGITS, "--write_config=/proc/x.json"], "/proc/x.json cannot be written"),
    ("benchmark", [DIGITS, "--picture={there}/absent/x.png"], "{there}/absent/x.png"),
    ("costs", [DIGITS, "--json=/proc/x.json"], "/proc/x.json cannot be written"),
    ("costs", ["{there}/absent.json", "--picture=/proc/x.png"], "/proc/x.png cannot be written"),
    ("compare", ["a={there}/run", "--output={there}/empty"], "{there}/empty"),
    ("import_official", ["{there}/file", "--workdir=/proc/new"], UNREADABLE),
    ("loading", ["--config={there}/absent.py"], "{there}/absent.py"),
    ("comparison", ["{there}/absent.json", "--output={there}/x"], "{there}/absent.json"),
    ("comparison", ["{there}/file.json", "--output={there}/x"], "{there}/file.json"),
    ("compression", [], "either --workdir or files of figures"),
    ("compression", ["--workdir={there}/absent"], "{there}/absent"),
    ("compression", [RUN, "--images={there}/absent.png"], "{there}/absent.png"),
    ("compression", [RUN, "--images=test:0-3", "--lengths", "9"], "--lengths is 9"),
    ("compression", [RUN, "--crops=3"], "photos, for crops"),
    ("compression", [RUN, "--picture={there}/absent/x.png"], "{there}/absent/x.png"),
    ("compression", ["{there}/file.json"], "{there}/file.json"),
    ("compression", ["{there}/figures.json"], "{there}/figures.json"),
    ("compression", ["{there}/figures.json", "--json={there}/x.json"], "allowed: with --workdir"),
]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with everything that can be wrong."""
    there = tmp_path_factory.mktemp("there")
    for name in ("file", "file.json", "file.pb", "file.pth"):
        (there / name).write_text("neither an image nor a run")
    (there / "figures.json").write_text('{"records": []}')
    (there / "broken.py").write_text("def get_config(:")
    for name in ("ValueError('no such value')", "TypeError('one argument')"):
        path = there / f"{name.partition('Error')[0].lower()}_error.py"
        path.write_text(f"def get_config():\n    raise {name}")
    np.save(there / "array.npy", np.zeros(3))
    (there / "array.npy").rename(there / "array.npz")
    (there / "raises.py").write_text("def get_config():\n    raise RuntimeError('no such thing')")
    (there / "arrays.py").write_text(
        "from configs import default\n\n\ndef get_config():\n"
        "    return default.get_config('numpy_arrays')"
    )
    (there / "empty").mkdir()
    image = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    for name in ("single", "damaged", "photos"):
        (there / name).mkdir()
        image.save(there / name / "a.png")
    (there / "damaged" / "b.png").write_text("not an image")
    (there / "few").mkdir()
    for level in range(3):
        Image.fromarray(np.full((64, 64, 3), level, np.uint8)).save(there / "few" / f"{level}.png")
    (there / "damaged" / "train.lmdb").write_text("not a database")
    np.savez(there / "latents.npz", values_00=np.zeros((1, 2, 2, 3), np.float32))

    run = make_run(there / "run")
    for name in ("garbled", "unknown", "untrained", "torn", "nested", "blocked"):
        shutil.copytree(run, there / name)
    (there / "garbled" / "config.json").write_text("{")
    (there / "nested" / "config.json").write_text("[" * 100_000)
    shutil.rmtree(there / "blocked" / "checkpoints")
    (there / "blocked" / "checkpoints").write_text("a file")
    settings = json.loads((run / "config.json").read_text())
    changed = settings | {"model": settings["model"] | {"depth": 3}}
    (there / "unknown" / "config.json").write_text(json.dumps(changed))
    shutil.rmtree(there / "untrained" / "checkpoints")
    for path in (there / "torn" / "checkpoints" / "7" / "state").rglob("*"):
        if path.is_file() and path.name != "_METADATA":
            path.write_bytes(path.read_bytes()[:10])
    data = {"name": "image_folder", "path": str(there / "photos"), "size": 32}
    make_run(there / "on_photos", COLOUR, **data)
    shutil.rmtree(there / "photos")
    return there


@pytest.fixture(scope="module")
def commands(there):
    commands = Commands(there)
    yield commands
    commands.close()


def refused(commands, there, module, arguments, cause):
    """Asserts that a command is refused with one line that has `cause` in it."""

    def filled(text):
        return text.replace("{there}", str(there)).replace("{root}", str(ROOT))

    outcome = commands.run(module, *map(filled, arguments))
    assert outcome.code == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr
    refusals = [line for line in outcome.stderr.splitlines() if line.startswith("refused: ")]
    assert len(refusals) == 1, outcome.stderr
    assert outcome.stderr.splitlines()[-1] == refusals[0], outcome.stderr  # nothing goes on below
    assert filled(cause) in refusals[0]


@pytest.mark.parametrize(("arguments", "cause"), TRAIN)
def test_training_and_preparing(commands, there, arguments, cause):
    refused(commands, there, MAIN, arguments, cause)
    assert not (there / "new").exists()


@pytest.mark.parametrize("mode", MODES)
def test_what_is_wrong_with_a_run(commands, there, mode):
    for arguments, cause in OF_ALL_MODES:
        refused(commands, there, MAIN, [f"--mode={mode}", *MODES[mode], *arguments], cause)


@pytest.mark.parametrize(("mode", "arguments", "cause"), OF_ONE_MODE)
def test_what_one_mode_is_asked_for(commands, there, mode, arguments, cause):
    refused(commands, there, MAIN, [f"--mode={mode}", RUN, *arguments], cause)


@pytest.mark.parametrize(("mode", "arguments", "cause"), WITHOUT_DATA)
def test_data_that_is_gone(commands, there, mode, arguments, cause):
    run = "--workdir={there}/on_photos"
    refused(commands, there, MAIN, [f"--mode={mode}", run, *arguments], cause)


@pytest.mark.parametrize(("tool", "arguments", "cause"), TOOLS)
def test_tools(commands, there, tool, arguments, cause):
    refused(commands, there, f"nvae_jax.tools.{tool}", arguments, cause)


def test_a_folder_that_cannot_be_written_to_is_refused_by_name(commands, there):
    (there / "run" / "sample").write_text("in the way")
    refused(commands, there, MAIN, ["--mode=sample", RUN], "{there}/run/sample")


@pytest.mark.parametrize(
    "arguments", [[DIGITS, NEW], [RUN, "--mode=sample"]], ids=["train", "sample"]
)
def test_a_mistake_in_the_program_keeps_its_traceback(commands, there, arguments):
    plant = "from nvae_jax.model import cells\ncells.upsample_nearest = lambda x: x"
    filled = [a.replace("{there}", str(there)).replace("{root}", str(ROOT)) for a in arguments]
    outcome = commands.run(MAIN, *filled, before=plant)
    assert outcome.code == 1
    assert "Traceback" in outcome.stderr
    assert "refused" not in outcome.stderr
    shutil.rmtree(there / "new", ignore_errors=True)
