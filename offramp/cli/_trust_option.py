"""`--trust`, an option of all commands that open runs."""

from pathlib import Path

OPENS = ("analyse", "bench", "calibrate", "curves", "deploy", "evaluate", "export", "report", "train")
"""Commands that open runs and take `--trust`."""
OPTION = "--trust: trust the run before opening it, as `offramp trust RUN` does."


def take_trust(words: list[str]) -> list[str]:
    """The words of a command without `--trust`, after trusting the runs that it names."""
    if not words or words[0] not in OPENS or "--trust" not in words:
        return words
    from offramp.train.run_dir import CONFIG, read_config
    from offramp.trust import grant

    for folder in map(Path, words[1:]):
        if (folder / CONFIG).is_file():
            grant(read_config(folder))
    return [word for word in words if word != "--trust"]
