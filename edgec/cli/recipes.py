"""`edgec recipes`: what to do to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgec.cli import console

app = typer.Typer(no_args_is_help=True, help="The recipes that ship, and a check for your own.")

Json = Annotated[Path | None, console.json_option("Write the recipes as JSON; - is stdout.")]


@app.command("list")
def list_(json: Json = None) -> None:
    """List the recipes that ship."""
    from edgec import resources
    from edgec.recipe import load_recipe

    found = [load_recipe(name) for name in resources.names("recipe")]
    if str(json) != "-":
        rows = [[recipe.name, " ".join(recipe.targets), recipe.summary] for recipe in found]
        console.table("recipes", ["name", "targets", "summary"], rows)
    if json is not None:
        console.write_json(json, [{"name": recipe.name, **recipe.to_dict()} for recipe in found])


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The name of a recipe that ships, or a recipe file.")],
    json: Json = None,
) -> None:
    """Print a recipe file, checked."""
    from edgec.recipe import load_recipe

    recipe = load_recipe(name)
    if str(json) != "-":
        typer.echo(recipe.source_path.read_text(encoding="utf-8-sig"), nl=False)
    if json is not None:
        console.write_json(json, recipe.to_dict())


@app.command()
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Recipe files, or names.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="The folder of the data sets that recipes name as data://SET/FILE."),
    ] = None,
    json: Json = None,
) -> None:
    """Check recipes without loading a model.

    Reports every problem of each file and of the targets that it names; reads the data, where it is at hand, and asks
    each pass whether what it needs is there. Exit code 2 when one has a problem.
    """
    from edgec.errors import RecipeError, UserError
    from edgec.passes import PASSES
    from edgec.recipe import load_recipe
    from edgec.sequence import check_asked, read_data
    from edgec.target import load_target

    problems: dict[str, list[str]] = {}
    hints: set[str] = set()
    awaited: dict[str, int] = {}
    for file in files:
        problems[file] = []
        try:
            recipe = load_recipe(file, passes=PASSES, data=data)
            awaited[file] = len(recipe.awaited)
            check_asked(recipe)
            if not recipe.awaited:
                read_data(recipe, lambda line: None)
        except UserError as error:
            problems[file].append(error.message)
            hints.add(error.hint)
            continue
        for target in recipe.targets:
            try:
                load_target(target)
            except UserError as error:
                problems[file].append(error.message)
                hints.add(error.hint)
    if str(json) != "-":
        for file in files:
            if not problems[file]:
                later = (
                    f" ({awaited[file]} files of data sets were not looked for: give --data)" if awaited[file] else ""
                )
                typer.echo(f"{file}: ok{later}")
    if json is not None:
        console.write_json(
            json, [{"file": file, "problems": problems[file], "awaited": awaited.get(file, 0)} for file in files]
        )
    if any(problems.values()):
        messages = [message for file in files for message in problems[file]]
        general = "docs/recipes.md and docs/targets.md explain every key"
        raise RecipeError("\n".join(messages), hints.pop() if len(hints) == 1 else general)
