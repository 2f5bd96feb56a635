"""`python -m packvit.cli COMMAND ...`: the `packvit` command, as torchrun starts it."""

from packvit.cli.commands import main

if __name__ == "__main__":
    main()
