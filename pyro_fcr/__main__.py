"""``python -m pyro_fcr``: the command line."""

from pyro_fcr.cli import main

if __name__ == "__main__":
    main()
