"""`python -m meddelinea` is the `meddelinea` command."""

from meddelinea.cli.main import main

if __name__ == "__main__":
    main()
