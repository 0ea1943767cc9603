"""Every file under configs/ does what its header says, and requirements.txt is what the code imports."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import datasets  # noqa: F401  (registers the datasets)
import trainers
from dassl.config import check_ranges, flatten, get_cfg_default, resolve
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
DATASET_FILES = sorted(CONFIGS.glob("datasets/*.yaml"))
RECIPES = sorted(CONFIGS.glob("trainers/*/*.yaml"))
OVERLAYS = sorted(CONFIGS.glob("overlays/*.yaml"))
BASES = sorted(CONFIGS.glob("base/*.yaml"))
SELF_CONTAINED = ("vit_b16", "embedded")  # models, and what a trainer's own files are called; its others are presets
PROTOCOLS = ("base2new", "few_shot", "xd")
SHOTS = (1, 2, 4, 8, 16)


def name_of(path):
    return str(path.relative_to(CONFIGS))


def defaults():
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    return cfg


def merged(*paths):
    cfg = defaults()
    for path in paths:
        cfg.merge_from_file(path)
    return cfg


def resolved(cfg, dataset, shots):
    """What `cfg` is for a dataset, by its registered name, and a number of shots."""
    cfg = cfg.clone()
    cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS = dataset, shots
    resolve(cfg)
    return cfg


@pytest.fixture(scope="module")
def offered():
    """{(trainer, model, protocol, preset): configuration} of all that the scripts offer, before `resolve`."""
    script = """
        . scripts/common.sh
        for TRAINER in $(ls configs/trainers); do
          for PRESET in "" $(ls configs/trainers/$TRAINER configs/overlays | sed -n "s/[.]yaml$//p"); do
            case $PRESET in vit_b16 | embedded* | base2new | few_shot | xd) continue ;; esac
            for CFG in vit_b16 embedded; do
              for stage in base2new_train few_shot xd_train; do
                place $stage imagenet 1
                if offered; then echo "$TRAINER,$CFG,${stage%_train},$PRESET,${files[*]}"; fi
              done
            done
          done
        done
    """
    command = ["bash", "-c", script, "scripts/list.sh"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    own, found = {}, {}
    for line in done.stdout.splitlines():
        *key, files = line.split(",")
        first, *overlays = files.split()
        if first not in own:
            own[first] = merged(ROOT / first)
        cfg = found[tuple(key)] = own[first].clone()
        for file in overlays:
            cfg.merge_from_file(ROOT / file)
    return found


def test_every_trainer_has_every_protocol_with_every_preset(offered):
    own = {"SkipTuning": "paper official cached", "CLIPAdapter": "cached", "DePT": "coop cocoop maple promptsrc"}
    own |= {"MMRL": "uniform", "MMRLpp": "uniform"}
    expected = set()
    for trainer in {path.parent.name for path in RECIPES}:
        for model in SELF_CONTAINED:
            presets = ["", *own.get(trainer, "").split(), "matched"]
            if trainer in ("ZeroshotCLIP", "TipAdapter", "LPpp", "SkipTuning") or model == "embedded":
                presets.remove("matched")  # nothing is trained, or its own recipe is what others are matched with
            expected |= {(trainer, model, protocol, preset) for protocol in PROTOCOLS for preset in presets}
    assert set(offered) == expected


def test_every_recipe_resolves_to_a_valid_configuration(offered):
    names = [yaml.safe_load(path.read_text())["DATASET"]["NAME"] for path in DATASET_FILES]
    for number, ((_, model, protocol, preset), cfg) in enumerate(offered.items()):
        assert protocol == cfg.PROTOCOL and preset == cfg.PRESET
        each = resolved(cfg, names[number % len(names)], SHOTS[number % len(SHOTS)])  # rows are tested one by one below
        check_ranges(each)
        assert {"vit_b16": "ViT-B/16", "embedded": "ViT-XS/16-icons"}[model] == each.MODEL.BACKBONE.NAME


def known_conditions():
    presets = {path.stem for path in RECIPES if path.stem not in SELF_CONTAINED} | {"matched"}
    shots = {f"{number}shots" for number in SHOTS}
    return {*DATASET_REGISTRY.registered_names(), *shots, *PROTOCOLS, *presets, "embedded"}


@pytest.mark.parametrize("path", [*RECIPES, *OVERLAYS, *BASES], ids=name_of)
def test_every_row_of_overrides_has_known_conditions_and_options(path):
    cfg = merged(path)
    for key, row in cfg.OVERRIDES.items():
        assert known_conditions().issuperset(key.split("+")), key
        before = flatten(cfg)
        other = cfg.clone()
        other.merge_from_other_cfg(row)
        assert {name for name in flatten(other) if not name.startswith("OVERRIDES")} <= set(before)


@pytest.mark.parametrize("path", [*DATASET_FILES, *RECIPES, *OVERLAYS, *BASES], ids=name_of)
def test_config_file_holds_only_known_keys_that_differ_from_what_it_is_based_on(path):
    own = yaml.safe_load(path.read_text())
    bases = own.pop("_BASE_", [])
    below = [[path.parent / base for base in ([bases] if isinstance(bases, str) else bases)]]
    if path in RECIPES and path.stem not in SELF_CONTAINED:  # a preset, for one of the trainer's own files at least
        below += [
            [path.with_name(f"{model}.yaml")] for model in SELF_CONTAINED if path.with_name(f"{model}.yaml").is_file()
        ]
    if path in OVERLAYS:
        below = [[other] for other in RECIPES if other.stem == "vit_b16"]
    before = [flatten(merged(*paths)) for paths in below]
    after = flatten(merged(path))
    assert own, "an empty file"
    assert [key for key in flatten(own) if all(after[key] == each.get(key) for each in before)] == []


def test_there_are_few_config_files():
    assert len(list(CONFIGS.rglob("*.yaml"))) <= 70


# What facts are known of the paper and of its released code, protocol by protocol: text and image learning rates,
# epochs, warm-up epochs and rate.
PAPER, PAPER_FEW_SHOT = (2e-5, 0, 20, -1, 1e-5), (2e-5, 0, 40, -1, 1e-5)
RELEASED = {
    "base2new": (2e-5, 5e-6, 20, 1, 1e-6),
    "few_shot": (1e-5, 0, 40, -1, 1e-5),
    "xd": (1e-5, 1e-6, 20, 1, 1e-8),
}
SCHEDULES = {
    "paper": {"base2new": PAPER, "few_shot": PAPER_FEW_SHOT, "xd": PAPER},
    "official": RELEASED,
    "": RELEASED,
}
CHOICES = {
    "paper": ("image", "paper", "step", 0, 1, "mixed", "auto"),
    "official": ("batch", "official", "run", 50, 0, "single_class", "fp16"),
    "": ("batch", "paper", "step", 50, 0, "mixed", "auto"),
}


@pytest.mark.parametrize("preset", SCHEDULES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_presets_of_skip_tuning_are_what_their_names_say(offered, protocol, preset):
    recipe = offered["SkipTuning", "vit_b16", protocol, preset]
    cfg = resolved(recipe, "EuroSAT", 16)
    options, optim = cfg.TRAINER.SKIPTUNING, cfg.OPTIM
    schedule = optim.LR, options.IMAGE_LR, optim.MAX_EPOCH, optim.WARMUP_EPOCH, optim.WARMUP_CONS_LR
    assert schedule == SCHEDULES[preset][protocol]
    assert (options.OMEGA, options.R, options.LAMBDA, cfg.DATALOADER.TRAIN_X.BATCH_SIZE) == (6, 0.5, 0.3, 4)
    keys = ["SCOPE", "DECAY", "RESAMPLE", "MAX_TOP", "VIEWS", "BATCHES", "PREC"]
    assert tuple(options[key] for key in keys) == CHOICES[preset]
    large = {resolved(recipe, name, 16).OPTIM.MAX_EPOCH for name in ("ImageNet", "SUN397", "Food101")}
    assert large == {optim.MAX_EPOCH if preset == "paper" else optim.MAX_EPOCH // 4}
    assert bool(options.TEMPLATE) == (preset == "paper")


# Batch size, learning rate and epochs (s: steps per shot), for
COLUMNS = [
    ("vit_b16", "base2new", "", "EuroSAT", 16),
    ("vit_b16", "few_shot", "", "EuroSAT", 1),
    ("vit_b16", "few_shot", "", "ImageNet", 16),
    ("vit_b16", "xd", "", "ImageNet", 16),
    ("vit_b16", "base2new", "matched", "SUN397", 16),
    ("vit_b16", "few_shot", "matched", "EuroSAT", 1),
]
NUMBERS = """
CLIPAdapter  32/0.002/100    32/0.002/100    32/0.002/100    32/0.002/100    4/0.002/5  4/0.002/40
CLIPLoRA     32/0.0002/500s  32/0.0002/500s  32/0.0002/500s  32/0.0002/500s  4/0.0002/5 4/0.0002/40
CoCoOp       1/0.002/10      1/0.002/10      1/0.002/10      1/0.002/10      4/0.002/5  4/0.002/40
CoOp         32/0.002/200    32/0.002/50     32/0.002/50     32/0.002/50     4/0.002/5  4/0.002/40
CoPrompt     4/0.0035/8      4/0.0035/8      4/0.0035/8      4/0.0035/8      4/0.0035/5 4/0.0035/40
DePT         4/0.0035/10     4/0.0035/10     4/0.0035/10     4/0.0035/10     4/0.0035/5 4/0.0035/40
FinetuneCLIP 4/1e-05/10      4/1e-05/10      4/1e-05/10      4/1e-05/4       4/1e-05/5  4/1e-05/40
IVLP         4/0.0025/20     4/0.0025/50     4/0.0025/50     4/0.0025/20     4/0.0025/5 4/0.0025/40
KgCoOp       128/0.002/100   128/0.002/100   128/0.002/100   128/0.002/100   4/0.002/5  4/0.002/40
MaPLe        4/0.0035/5      4/0.0035/50     4/0.0035/50     4/0.0026/2      4/0.0035/5 4/0.0035/40
MMRL         4/0.001/10      32/0.001/50     32/0.001/5      32/0.001/1      4/0.001/5  4/0.001/40
MMRLpp       4/0.001/10      32/0.002/100    32/0.001/5      32/0.001/1      4/0.001/5  4/0.002/40
ProGrad      32/0.002/100    32/0.002/50     32/0.002/50     32/0.002/100    4/0.002/5  4/0.002/40
PromptSRC    4/0.0025/20     4/0.0025/50     4/0.0025/50     4/0.0025/20     4/0.0025/5 4/0.0025/40
TCP          32/0.002/50     32/0.002/50     32/0.002/25     32/0.002/25     4/0.002/5  4/0.002/40
TipAdapterF  256/0.001/100   256/0.001/100   256/0.001/20    256/0.001/20    4/0.001/5  4/0.001/40
TwoSFS       32/0.0002/300s  32/0.0002/300s  32/0.0002/300s  32/0.0002/300s  4/0.0002/5 4/0.0002/40
CLIPSVD      32/0.0004/20    32/0.0005/200s  32/0.0005/200s  32/0.0005/200s  4/0.0004/5 4/0.0005/40
ProLIP       20000/1e-05/300 20000/1e-05/300 20000/1e-05/300 20000/1e-05/300 4/1e-05/5  4/1e-05/40
LPpp         20000/1/300     20000/1/300     20000/1/300     20000/1/300     -          -
"""


@pytest.mark.parametrize("row", NUMBERS.strip().splitlines(), ids=lambda row: row.split()[0])
def test_recipes_have_the_releases_numbers_and_skip_tunings_where_matched(offered, row):
    trainer, *expected = row.split()
    found = []
    for model, protocol, preset, dataset, shots in COLUMNS:
        if (trainer, model, protocol, preset) not in offered:
            found.append("-")
            continue
        cfg = resolved(offered[trainer, model, protocol, preset], dataset, shots)
        steps = cfg.OPTIM.STEPS_PER_SHOT
        epochs = f"{steps}s" if steps else cfg.OPTIM.MAX_EPOCH
        found.append(f"{cfg.DATALOADER.TRAIN_X.BATCH_SIZE}/{cfg.OPTIM.LR:g}/{epochs}")
    assert found == expected


def test_rates_of_the_embedded_model_are_those_that_the_rule_chose(offered):
    figures = [json.loads((ROOT / f"docs/results/{name}.json").read_text()) for name in ("rates", "rates_cached")]
    rows = [row for figure in figures for table in figure["tables"] for row in table["rows"]]
    assert len(rows) == 21  # all that have a rate, but for CoCoOp
    expected = {(row["method"], row["preset"]): (32, row["chosen"], row["trials"]) for row in rows}
    expected |= {("CoCoOp", "recommended"): (32, "0.002x6", "0"), ("LPpp", "recommended"): (20000, "1x90", "0")}
    for (trainer, preset), numbers in expected.items():
        recipe = offered[trainer, "embedded", "base2new", preset.replace("recommended", "")]
        cfg = resolved(recipe, "Emoji", 4)
        chosen = f"{cfg.OPTIM.LR:g}x{cfg.OPTIM.MAX_EPOCH}"
        assert (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, chosen, str(cfg.TRIALS)) == numbers, trainer
        if trainer == "PromptSRC":  # what it averages moves with the epochs, as in scripts/choose.sh
            averaged = cfg.TRAINER.PROMPTSRC.GPA_MEAN, cfg.TRAINER.PROMPTSRC.GPA_STD
            assert averaged == pytest.approx((0.75 * cfg.OPTIM.MAX_EPOCH, 0.05 * cfg.OPTIM.MAX_EPOCH))


def test_options_of_one_dataset_one_number_of_shots_and_one_protocol(offered):
    def option(trainer, protocol, preset, dataset, shots, key):
        return flatten(resolved(offered[trainer, "vit_b16", protocol, preset], dataset, shots))[f"TRAINER.{key}"]

    assert option("ProGrad", "few_shot", "", "EuroSAT", 8, "PROGRAD.LAMBDA") == 0.8
    assert option("ProGrad", "few_shot", "", "EuroSAT", 4, "PROGRAD.LAMBDA") == 1.0
    assert option("ProGrad", "base2new", "", "EuroSAT", 16, "PROGRAD.LAMBDA") == 1.0
    assert option("CoOp", "few_shot", "", "EuroSAT", 16, "COOP.CTX_INIT") == ""
    assert option("CoOp", "xd", "", "EuroSAT", 16, "COOP.CTX_INIT") == "a photo of a"
    assert option("CoPrompt", "base2new", "", "EuroSAT", 16, "COPROMPT.N_CTX") == 2
    assert option("CoPrompt", "xd", "", "EuroSAT", 16, "COPROMPT.N_CTX") == 4  # a target of ImageNet's prompts
    for key, expected in (("MMRL.REP_DIM", (2048, 512, 512)), ("MMRL.REG_WEIGHT", (0.01, 0.2, 1.0))):
        trainer, cases = "MMRL", (("base2new", ""), ("xd", ""), ("base2new", "uniform"))
        assert tuple(option(trainer, *case, "EuroSAT", 16, key) for case in cases) == expected
    for case, beta in {
        ("base2new", ""): 0.2,
        ("xd", ""): 0.3,
        ("base2new", "uniform"): 0.9,
        ("xd", "uniform"): 0.9,
    }.items():
        assert option("MMRLpp", *case, "EuroSAT", 16, "MMRLPP.BETA") == beta
    assert option("MMRLpp", "xd", "", "ImageNetA", 16, "MMRLPP.BETA") == 0.8
    assert option("MMRLpp", "xd", "", "ImageNet", 16, "MMRLPP.REG_WEIGHT") == 0.1
    means = {
        ("base2new", "", "ImageNet"): 15.0,
        ("base2new", "matched", "ImageNet"): 3.75,
        ("few_shot", "", "EuroSAT"): 45.0,
        ("few_shot", "matched", "EuroSAT"): 36.0,
        ("few_shot", "matched", "ImageNet"): 6.0,
        ("few_shot", "matched", "UCF101"): 24.0,
        ("xd", "", "ImageNet"): 6.0,
        ("xd", "matched", "ImageNet"): 1.5,
    }
    for (protocol, preset, dataset), mean in means.items():
        assert option("PromptSRC", protocol, preset, dataset, 16, "PROMPTSRC.GPA_MEAN") == mean


# Prompts


def prompts_in(path):
    """Every text with {} in a YAML file."""
    found = []
    rest = [yaml.safe_load(path.read_text())]
    while rest:
        node = rest.pop()
        if isinstance(node, dict | list):
            rest += node.values() if isinstance(node, dict) else node
        elif "{}" in str(node):
            found.append(node)
    return found


def test_prompts_are_in_one_table_but_for_the_papers_own():
    elsewhere = {name_of(path): prompts_in(path) for path in CONFIGS.rglob("*.yaml") if path.name != "templates.yaml"}
    assert {name: found for name, found in elsewhere.items() if found} == {
        "trainers/SkipTuning/vit_b16.yaml": ["a photo of a {}."]
    }


def test_table_of_prompts_names_registered_datasets_and_says_nothing_twice():
    table = yaml.safe_load((CONFIGS / "templates.yaml").read_text())
    assert set(table) == {"uses", "ensemble"} and len(set(table["ensemble"])) == len(table["ensemble"]) == 60
    for row in table["uses"].values():
        like = table["uses"].get(row.get("like"), {})
        assert "default" in row or "default" in like
        names = set(row) - {"like", "default"}
        assert names <= set(DATASET_REGISTRY.registered_names())
        for name in names:
            prompts = row[name] if isinstance(row[name], list) else [row[name]]
            assert all(prompt.count("{}") == 1 for prompt in prompts)
            assert row[name] != like.get(name, like.get("default", row.get("default")))


@pytest.mark.parametrize("path", DATASET_FILES, ids=name_of)
def test_dataset_file_names_a_registered_dataset(path):
    assert yaml.safe_load(path.read_text())["DATASET"]["NAME"] in DATASET_REGISTRY.registered_names()


def test_every_registered_dataset_has_a_file():
    named = {yaml.safe_load(path.read_text())["DATASET"]["NAME"] for path in DATASET_FILES}
    registered = map(DATASET_REGISTRY.get, DATASET_REGISTRY.registered_names())  # the tests' own are not in datasets
    assert {each.__name__ for each in registered if each.__module__.startswith("datasets.")} == named


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_trainer_file_lies_in_the_folder_of_a_registered_trainer(path):
    assert path.parent.name in TRAINER_REGISTRY.registered_names()


def test_every_registered_trainer_has_a_file_and_where_it_learns_its_own_numbers_for_the_embedded_model():
    ours = map(TRAINER_REGISTRY.get, TRAINER_REGISTRY.registered_names())  # the tests' own are not in trainers
    for trainer in (each.__name__ for each in ours if each.__module__.startswith("trainers.")):
        file = CONFIGS / f"trainers/{trainer}/vit_b16.yaml"
        rows = merged(file).OVERRIDES
        assert file.with_name("embedded.yaml").is_file() or "embedded" in rows


def test_rows_for_another_model_do_not_hold_for_the_embedded_one_on_any_dataset():
    cfg = merged(CONFIGS / "trainers/CoOp/vit_b16.yaml", CONFIGS / "overlays/few_shot.yaml")
    assert resolved(cfg, "Emoji", 4).OPTIM.MAX_EPOCH == 100  # few_shot+4shots
    cfg = merged(CONFIGS / "trainers/CoOp/vit_b16.yaml", CONFIGS / "overlays/embedded.yaml")
    cfg.merge_from_file(CONFIGS / "overlays/few_shot.yaml")
    for dataset in ("Emoji", "ImageNet"):
        found = resolved(cfg, dataset, 4)
        assert (found.OPTIM.MAX_EPOCH, found.TRAINER.COOP.CTX_INIT) == (12, "an emoji of a")


@pytest.mark.parametrize("path", [*RECIPES, *OVERLAYS], ids=name_of)
def test_recipe_starts_with_the_command_that_uses_it(path):
    header = re.match(r"(?:#.*\n)+", path.read_text())
    assert header, "no comment on top"
    commands = re.findall(r"^#   (.*)bash (scripts/(\w+)/\w+\.sh) (.*)$", header[0], re.M)
    assert commands and all((ROOT / script).is_file() for _, script, _, _ in commands)
    for settings, _, method, arguments in commands:
        own = {"skip": "skiptuning"}.get(method, method.replace("_", ""))
        assert path.parent.name in ("overlays",) or path.parent.name.lower() == own
        assert path.stem.startswith("embedded") == ("emoji" in arguments)
        preset = yaml.safe_load(path.read_text()).get("PRESET", "")
        assert settings == (f"PRESET={preset} " if preset else "")


def imported(paths):
    """Names of the packages that these files import, neither ours nor Python's."""
    ours = {"clip", "dassl", "datasets", "trainers", "train", "parse_test_res", "results"}
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - ours - set(sys.stdlib_module_names)


def test_requirements_are_exactly_what_the_code_imports():
    code = [ROOT / "train.py", ROOT / "predict.py", ROOT / "parse_test_res.py"]
    packages = ("clip", "dassl", "datasets", "trainers", "results")
    code += [path for package in packages for path in ROOT.glob(f"{package}/**/*.py")]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    required = {re.match(r"\w+", line)[0] for line in lines}
    optional = {
        "tensorboard",
        "gdown",
        "matplotlib",
        "pillow_heif",
        "huggingface_hub",
        "plotly",
        "itables",
        "onnx",
        "onnxruntime",
    }
    module_names = {"Pillow": "PIL", "PyYAML": "yaml"}
    assert imported(code) - optional == {module_names.get(name, name) for name in required}
