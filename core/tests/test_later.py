import subprocess
import sys

import pytest

PROGRAM = """
import sys
from diskwright.later import load_later

for name in ("textwrap", "xml.dom", "colorsys", "wsgiref", "wsgiref.headers"):
    sys.modules.pop(name, None)
load_later("textwrap", "xml.dom", "colorsys", "wsgiref", "no_such_module")
{}
"""

IMPORTS = {
    "the module": "import textwrap; assert textwrap.dedent('  a') == 'a'; textwrap.shorten('a b', 5)",
    "a name": "from textwrap import dedent; assert dedent('  a') == 'a'; import textwrap; assert textwrap.__file__",
    "part of a package": "from xml import dom; assert dom.Node.TEXT_NODE == 3; import xml.dom; assert xml.dom.__path__",
    "part of what waits": "import wsgiref.headers; assert wsgiref.headers.Headers",
    "part of what waits by name": "from wsgiref import headers; assert headers.Headers",
    "not used": "import textwrap; assert 're' in sys.modules; assert not hasattr(textwrap, '__file__')",
    "unknown name": """
try:
    from colorsys import purple
except ImportError:
    import colorsys
    assert colorsys.__file__ and sys.modules["colorsys"] is colorsys
else:
    raise AssertionError
""",
    "no such module": """
import no_such_module
try:
    no_such_module.name
except ModuleNotFoundError as error:
    assert error.name == "no_such_module"
else:
    raise AssertionError
""",
    "threads": """
import textwrap, threading
found = []
threads = [threading.Thread(target=lambda: found.append(textwrap.dedent)) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(found) == 8 and len(set(found)) == 1
""",
}


@pytest.mark.parametrize("use", IMPORTS.values(), ids=IMPORTS)
def test_what_waits_is_loaded_by_its_use(use: str) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM.format(use)], check=True)
