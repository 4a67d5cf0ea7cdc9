"""Packaging: ``pip install -e '.[all]'``. Tool settings stand in pyproject.toml."""

import re
import sys
from pathlib import Path

if Path(sys.argv[0]).name == "setup.py":
    # refuses another Python; pip does so by itself, from python_requires
    import xtuner  # noqa: F401

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PACKAGE = (HERE / "xtuner" / "__init__.py").read_text(encoding="utf-8")


def requirements(name: str) -> "list[str]":
    """Returns the lines of requirements/<name>.txt that name a package."""
    lines = (HERE / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith(("#", "-r"))]


def version() -> str:
    """Reads ``__version__`` without importing the package."""
    return PACKAGE.split('__version__ = "')[1].split('"')[0]


OLDEST, NEWEST = (int(minor) for minor in re.findall(r"_PYTHON = \(3, (\d+)\)", PACKAGE))
IN_ALL = ("tests", "serve", "docs")
extras = {name: requirements(name) for name in ("tests", "gpu", "serve", "vllm", "quantize", "lmms", "docs", "real")}

setup(
    name="mg-llava-xtuner",
    version=version(),
    description="MG-LLaVA on an XTuner-style framework: Python configs, DeepSpeed, two stages, evaluation, chat.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the maintainers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(OLDEST, NEWEST + 1)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=f">=3.{OLDEST},<3.{NEWEST + 1}",
    # the configs travel inside xtuner, so that an installed package finds them; top-level names stay free for the user
    packages=[*find_packages(include=["mg_llava*", "xtuner*"]), "xtuner.configs"],
    package_dir={"xtuner.configs": "configs"},
    package_data={
        "xtuner.configs": ["**/*.py", "**/*.json"],
        "mg_llava": ["py.typed", "detectors/*.txt", "evaluation/results/*.html"],
        "xtuner": ["py.typed"],
    },
    install_requires=requirements("runtime"),
    # `all` is everything that needs no GPU: web page and endpoint, tests, docs. lmms-eval, which brings dozens of
    # packages along and is wanted by few, stays an extra of its own
    extras_require={**extras, "all": sorted({line for name in IN_ALL for line in extras[name]})},
    entry_points={
        "console_scripts": ["xtuner=xtuner.cli:main"],
        "xtuner.plugins": ["serve=mg_llava.serving.command"],
        # read by vLLM where it is installed
        "vllm.general_plugins": ["mg_llava=mg_llava.serving.vllm:register"],
        # read by lmms-eval where it is installed
        "lmms_eval.models": ["mg_llava=mg_llava.evaluation.lmms_eval:lmms_eval_manifest"],
    },
)
