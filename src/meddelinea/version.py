"""The version of the package: read here by the build, the sidecars, the server and the command line."""

__version__ = "0.1.0"
