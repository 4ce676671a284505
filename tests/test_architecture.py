import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("tokenizer", "seq2seq", "cli")
MODULES = sorted(
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)
TREES = {path: ast.parse((ROOT / path).read_bytes()) for path in MODULES}
each_module = pytest.mark.parametrize("path", MODULES, ids=str)


@pytest.fixture(scope="module")
def order():
    """The modules in the order in which ARCHITECTURE.md tells people to read them."""
    document = (ROOT / "ARCHITECTURE.md").read_bytes().decode()
    block = re.search(r"```reading-order\n(.*?)```", document, re.DOTALL)
    assert block is not None
    return [Path(line.split()[0]) for line in block[1].split("\n") if line.strip()]


def imports(tree):
    """The modules of ours that a module imports, wherever in it."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    paths = (Path(*name.split(".")).with_suffix(".py") for name in names)
    return {path for path in paths if path in TREES}


def test_the_reading_order_lists_every_module_once(order):
    assert sorted(order) == MODULES


@each_module
def test_a_module_imports_only_what_comes_before_it(order, path):
    assert imports(TREES[path]) <= set(order[: order.index(path)])


def test_the_layers_are_cli_on_seq2seq_on_tokenizer(order):
    packages = [path.parts[0] for path in order]
    assert packages == sorted(packages, key=PACKAGES.index)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_flat_and_typed(package):
    assert (ROOT / package / "py.typed").is_file()
    assert not [p for p in (ROOT / package).rglob("*.py") if p.parent != ROOT / package]


@each_module
def test_modules_and_public_names_are_documented(path):
    tree = TREES[path]
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert all(ast.get_docstring(node) for node in [tree, *public])


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_hold_sources_and_nothing_else(package):
    paths = (p for p in (ROOT / package).rglob("*") if "__pycache__" not in p.parts)
    files = [p for p in paths if p.is_file()]
    assert {p.suffix for p in files} == {".py", ".typed"}
    assert not [p for p in files if p.read_bytes()[:1] == b"\x80"]  # how a pickle begins


NAMES = {"eval", "exec", "__import__"}
METHODS = {"splitlines", "readlines", "read_text", "write_text"}
IMPORTS = {"pickle", "marshal", "shelve", "dill", "joblib", "yaml", "importlib.util"}
DOTTED = {
    "torch.load",
    "torch.save",
    "torch.jit",
    "torch.hub",
    "sys.stdin",
    "os.system",
    "os.popen",
}
DOTTED |= {"np.load", "numpy.load", "io.open", "codecs.open"}


def forbidden(tree):
    """What would execute data, or read text in another way than `tokenizer/lines.py`."""
    for node in ast.walk(tree):
        yield from forbidden_names(node)
        yield from forbidden_opening(node)


def forbidden_names(node):
    match node:
        case ast.Import(names=aliases):
            yield from (alias.name for alias in aliases if alias.name in IMPORTS)
        case ast.ImportFrom(module=str(module)) if module in IMPORTS:
            yield module
        case ast.Attribute(value=ast.Name(id=owner), attr=attr) if f"{owner}.{attr}" in DOTTED:
            yield f"{owner}.{attr}"
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield name
        case ast.Call(func=ast.Attribute(attr=attr)) if attr in METHODS:
            yield attr
        case ast.keyword(arg="shell"):
            yield "shell="
        case ast.Call(func=ast.Attribute(attr="CDLL"), args=args) if ast.unparse(args[0]) != "None":
            yield "CDLL of a file"


def forbidden_opening(node):
    match node:
        case ast.Call(func=ast.Name(id="open"), args=args, keywords=keywords):
            modes = args[1:2]
        case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr="open")):
            return
        case ast.Call(func=ast.Attribute(attr="open"), args=args, keywords=keywords):
            modes = args[:1]
        case _:
            return
    modes = [*modes, *(k.value for k in keywords if k.arg == "mode")]
    if not (modes and isinstance(modes[0], ast.Constant) and "b" in str(modes[0].value)):
        yield "open in text mode"


@each_module
def test_nothing_is_executed_unpickled_or_read_as_text(path):
    assert list(forbidden(TREES[path])) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import yaml",
        "os.popen(c)",
        "np.load(f, allow_pickle=True)",
        "from pickle import loads",
        "torch.load(f)",
        "eval('1')",
        "ctypes.CDLL(f)",
        "text.splitlines()",
        "path.read_text()",
        "open(path)",
        "open(path, 'r')",
        "path.open()",
        "path.open(mode='w')",
        "subprocess.run(c, shell=True)",
        "for line in sys.stdin: pass",
    ],
)
def test_the_test_above_finds_what_it_looks_for(code):
    assert list(forbidden(ast.parse(code)))


def test_what_is_allowed_is_not_found():
    code = "model.eval(); path.open('rb'); os.open(p, 0); data.split(b'\\n'); re.compile('x')"
    code += "; ctypes.CDLL(None)"
    assert not list(forbidden(ast.parse(code)))


@pytest.fixture(scope="module")
def readme():
    return runpy.run_path(str(ROOT / "tests" / "update_readme.py"))


def test_the_readme_shows_the_help_of_every_command(readme):
    text = (ROOT / "README.md").read_bytes().decode()
    missing = [name for name in readme["commands"]() if f"<!-- help: tfm {name} -->" not in text]
    assert missing == []


def test_the_help_texts_in_the_readme_are_up_to_date(readme):
    text = (ROOT / "README.md").read_bytes().decode()
    assert text == readme["updated"](text), "run: make fix"
