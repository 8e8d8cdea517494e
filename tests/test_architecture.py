"""The house rules: imports flow down, scripts are thin, one word per step, registries are light."""

import ast
import functools
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plateloom"
RULE_FILES = sorted((ROOT / "rules").glob("*.smk"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))

# From the top down; a module imports from its own wing and from those below it.
WINGS = [
    {
        "cli",
        "status",
        "driver",
        "planning",
        "config",
        "repair",
        "lineage",
        "export",
        "quarantines",
        "acceptances",
        "ledgers",
        "leftovers",
        "runs",
        "estimate",
        "upgrades",
        "inbox",
        "nights",
    },
    {"stages"},
    {
        "engine",
        "readers",
        "projection",
        "stitching",
        "illumination",
        "restoration",
        "quality",
        "segmentation",
        "features",
        "profiling",
        "plate_effects",
        "mixing",
        "comparison",
        "latent",
        "classification",
        "report",
        "simulation",
    },
    {"store"},
    {"compilation", "devices", "errors", "intervals", "kernel_cache", "registry", "schema", "tiling", "wells"},
]
COMPUTE = WINGS[2] - {"engine", "readers"}
BESIDE = {("quality", "illumination"), ("classification", "latent")}  # crops are cut, scaled and turned in one place
REGISTRIES = [
    "plateloom.readers",
    "plateloom.illumination",
    "plateloom.restoration",
    "plateloom.segmentation",
    "plateloom.features",
    "plateloom.latent",
    "plateloom.classification",
]


def wing_of(module):
    """Level of a module of ours, and its wing's name."""
    name = module.split(".")[1] if "." in module else ""
    for level, wing in enumerate(WINGS):
        if name in wing:
            return level, name
    raise AssertionError(f"{module} belongs to no wing")


def imports_of(path):
    """Dotted names of our modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("plateloom."))
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "plateloom":
                yield from (f"plateloom.{alias.name}" for alias in node.names if alias.name != "__version__")
            elif node.module.startswith("plateloom."):
                yield node.module


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_flow_down(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if module == "plateloom":
        return
    level, wing = wing_of(module)
    for imported in imports_of(path):
        other_level, other = wing_of(imported)
        assert other_level >= level, f"{module} imports {imported}, which lies above it"
        if wing in COMPUTE and other in WINGS[2]:
            assert other == wing or (wing, other) in BESIDE, f"{module} imports {imported} beside it"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_compute_knows_no_dask_no_zarr_no_config_and_no_store(path):
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if first not in COMPUTE:
        return
    text = path.read_text()
    for name in ("dask", "distributed", "zarr", "snakemake", "plateloom.store", "plateloom.config"):
        assert not re.search(rf"^\s*(import|from) {re.escape(name)}\b", text, re.M), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_thin(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 30
    tree = ast.parse(text)
    for node in ast.walk(tree):
        assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While | ast.Try), (
            f"line {node.lineno}"
        )
    assert 'if __name__ == "__main__":' in text
    assert "snakemake.config" not in text
    assert not re.search(r"snakemake\.\w+\[", text)


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.name)
def test_rule_script_log_and_benchmark_have_one_name(path):
    text = path.read_text()
    for name, body in re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", text, re.S | re.M):
        assert f'"../scripts/{name}.py"' in body
        assert (ROOT / "scripts" / f"{name}.py").exists()
        assert re.search(rf'log:\s+"logs/{name}[/.]', body)
        assert re.search(rf'benchmark:\s+"benchmarks/{name}[/.]', body)
        assert re.search(r'record="results/.*\.json"', body), "the declared output is a record"
        assert "lambda" not in body and "run:" not in body
        assert "code=code_of(" in body


def test_every_script_has_a_rule():
    rules = {name for path in RULE_FILES for name in re.findall(r"^rule (\w+):", path.read_text(), re.M)}
    assert {path.stem for path in SCRIPTS} == rules


@pytest.mark.parametrize("path", [path for path in RULE_FILES if path.stem != "common"], ids=lambda path: path.name)
def test_a_step_keeps_one_word_through_every_folder(path):
    step = path.stem
    assert (PACKAGE / "stages" / f"{step}.py").exists()
    assert (ROOT / "tests" / f"test_{step}.py").exists()


def test_stages_rules_and_scripts_agree():
    from plateloom.planning import STAGES

    rules = {name: path for path in RULE_FILES for name in re.findall(r"^rule (\w+):", path.read_text(), re.M)}
    assert {stage.script for stage in STAGES.values()} == set(rules)
    for name, stage in STAGES.items():
        body = rules[stage.script].read_text().split(f"rule {stage.script}:")[1]
        where = f"results/screen/records/{name}.json" if stage.scope == "screen" else f"records/{name}/part-"
        assert where in body.split("log:")[0].split("output:")[1]
        assert stage.modules[0] in (ROOT / "scripts" / f"{stage.script}.py").read_text()


def module_file(name):
    """File of a module of ours; None where there is none of this name."""
    stem = ROOT.joinpath(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.exists()), None)


@functools.cache
def read_imports(path):
    """Names that a file imports anywhere, and when it is loaded, and files of ours that it names in a string, as registries do."""
    tree = ast.parse(path.read_text())
    inside = {id(node) for part in ast.walk(tree) if isinstance(part, ast.FunctionDef) for node in ast.walk(part)}
    anywhere, loaded, named = set(), set(), set()
    for node in ast.walk(tree):
        found = set()
        if isinstance(node, ast.Import):
            found = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("plateloom."):
            named |= {module_file(node.value)} - {None}
        anywhere |= found
        loaded |= set() if id(node) in inside else found
    return anywhere, loaded, named


def packages_of(script):
    """Top-level names of other people's modules that a script can come to import, each with a file of ours that imports it.

    Of a method that a registry names only what loading it imports: a page reads the parameters of a network that it never runs.
    """
    methods = set().union(*(read_imports(path)[2] for path in PACKAGE.rglob("__init__.py")))
    found, seen, waiting = {}, set(), [(script, True)]
    while waiting:
        path, whole = waiting.pop()
        if (path, whole) in seen:
            continue
        seen.add((path, whole))
        anywhere, loaded, named = read_imports(path)
        for name in anywhere if whole else loaded:
            top, *_ = parts = name.split(".")
            if top == "plateloom":
                ours = (module_file(".".join(parts[: i + 1])) for i in range(len(parts)))
                waiting += [(file, whole and file not in methods) for file in ours if file]
            elif top not in sys.stdlib_module_names and (path.stem, top) != ("devices", "torch"):  # asked by networks
                found.setdefault(top, str(path.relative_to(ROOT)))
        waiting += [(file, False) for file in named]
    return found


@functools.cache
def distributions_of(environment):
    """Names of the distributions that an environment gets: those that it lists, and what they need."""
    listed = yaml.safe_load(environment.read_text())["dependencies"][-1]["pip"]
    found, waiting = set(), [Requirement(line).name for line in listed]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            needed = map(Requirement, metadata.requires(name) or ())
            waiting += [one.name for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_a_rule_imports_is_in_its_environment(script):
    body = next(text for path in RULE_FILES if f"rule {script.stem}:" in (text := path.read_text()))
    environment = ROOT / "envs" / re.search(r"envs/(\w+\.yaml)", body.split(f"rule {script.stem}:")[1])[1]
    there, providers = distributions_of(environment), metadata.packages_distributions()
    for name, path in packages_of(script).items():
        offered = {canonicalize_name(one) for one in providers.get(name, [name])}
        assert offered & there, f"{path} imports {name}, which {environment.name} lacks"


@pytest.mark.parametrize("package", REGISTRIES)
def test_listing_methods_imports_nothing_heavy(package):
    heavy = ["numpy", "pandas", "scipy", "skimage", "sklearn", "torch", "numba", "zarr", "dask", "umap"]
    code = f"import sys, {package}; print(sorted(set(sys.modules) & set({heavy!r})))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ast.literal_eval(found.stdout) == []


def test_the_command_starts_without_heavy_imports():
    code = "import sys, plateloom.cli; print(sorted(set(sys.modules) & {'numpy', 'torch', 'pandas', 'snakemake'}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


def test_a_config_is_checked_without_what_only_jobs_need():
    code = (
        "import sys, yaml; from plateloom.config import load_config;"
        "load_config(yaml.safe_load(open('config/examples/bbbc013/config.yaml')));"
        "print(sorted(set(sys.modules) & {'torch', 'sklearn', 'skops', 'umap', 'dask', 'distributed'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


def test_there_is_no_catch_all_module():
    for path in PACKAGE.rglob("*.py"):
        assert path.stem not in ("util", "utils", "helpers", "common", "misc", "base", "constants")


def test_no_model_or_table_is_pickled():
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(
            r"^\s*(import|from) (pickle|joblib|dill)\b|pickle\.load|torch\.load(?!\([^()]*weights_only=True\))",
            path.read_text(),
            re.M,
        ), path
