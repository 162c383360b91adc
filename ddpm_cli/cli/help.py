"""What --help shows of the YAML files: their knobs with the comments that explain them, and the options of groups."""

from omegaconf import OmegaConf

from ddpm_cli.config.groups import options_of, primary_files, primary_groups


def register_help() -> None:
    """Lets the help templates in configs/*.yaml ask for these texts."""
    OmegaConf.register_new_resolver("ddpm_knobs", knobs_text, replace=True)
    OmegaConf.register_new_resolver("ddpm_options", options_text, replace=True)


def knobs_text(config_name: str) -> str:
    """The knobs of a primary configuration as its files explain them."""
    texts = [file.read_text(encoding="utf-8") for file in primary_files(config_name)]
    knobs = [text.partition("\n\n")[2].partition("\nhydra:")[0].rstrip() for text in texts]
    return "\n".join(knobs).replace("$", "$$")  # Hydra substitutes $NAME in the help


def options_text(config_name: str) -> str:
    """A line for each group of a primary configuration: its options, the default in brackets."""
    lines = []
    for group, default in primary_groups(config_name).items():
        options = ", ".join(f"[{name}]" if name == default else name for name in options_of(group))
        if options:
            lines.append(f"{group + '=':<12} {options}")
    return "\n".join(lines)
