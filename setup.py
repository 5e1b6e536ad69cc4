"""What pyproject.toml cannot say: configs/ and tools/ are installed inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["nl_detectron", "nl_detectron.*"]),
        "nl_detectron.configs",
        "nl_detectron.tools",
    ],
    package_dir={"nl_detectron.configs": "configs", "nl_detectron.tools": "tools"},
    package_data={
        "nl_detectron": ["py.typed", "**/*.j2"],
        "nl_detectron.configs": ["**/*.yaml", "**/*.py"],
    },
)
