from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from rearkit.components.tokenizers.maskgit_vqgan import MaskGITVQGANSettings
from rearkit.errors import RecipeError
from rearkit.recipe.loading import load_recipe, recipe_to_dict
from rearkit.recipe.tables import FitTable, Recipe
from rearkit.sweeps.sweep import load_sweep

Content = dict[str, Any]
Path_ = tuple[str | int, ...]
RECIPES = Path(__file__).parents[2] / "recipes"

share = st.floats(0, 1)
above_zero = st.floats(1e-6, 10)
count = st.integers(1, 1000)
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0{}"), min_size=1, max_size=8)
# As a name of a folder may be; `test_table_checks.py` has what it may not.
names = words.filter(lambda name: name.isprintable() and name == name.strip() and not set(name) & set("./\\"))


def table(required: dict[str, Any] | None = None, **optional: Any) -> Any:
    return st.fixed_dictionaries(required or {}, optional=optional)


def named(name: str, **optional: Any) -> Any:
    return table({"name": st.just(name)}, **optional)


def train_table(draw_from: dict[str, int]) -> Any:
    steps, micro, times = draw_from["steps"], draw_from["micro"], draw_from["times"]
    return table(
        {"steps": st.just(steps), "global_batch": st.just(micro * times)},
        micro_batch=st.just(micro),
        lr=st.floats(1e-3, 1),
        end_lr=st.floats(0, 4e-4),  # not above the default of lr
        warmup_steps=st.integers(0, steps - 1),
        betas=st.lists(st.floats(0, 0.99), min_size=2, max_size=2),
        weight_decay=share,
        clip=share,
        label_dropout=st.floats(0, 0.99),
        precision=st.sampled_from(["fp32", "bf16", "fp16"]),
        zero_stage=st.sampled_from([0, 1, 2, 3]),
        log_every=count,
        keep_checkpoints=count,
        deepspeed=st.just({"zero_optimization": {"overlap_comm": False}}),
    )


recipes = table(
    {
        "name": names,
        "data": table(
            {
                "source": named("mnist-5k", image_size=st.integers(28, 64))
                | table({"name": st.just("shards"), "num_classes": count}, train=words)
            },
            shard_size=count,
            max_bad_share=share,
        ),
        "tokenizer": named(
            "maskgit-vqgan",
            weights=words,
            fit=table(steps=st.integers(51, 1000), lr=above_zero, min_psnr=share),
            codebook_size=st.integers(2, 65536),
            channel_mult=st.lists(st.integers(1, 4), min_size=1, max_size=4),
            commitment=share,
        ),
        "backbone": named("dit-ar", num_layers=count, mlp_size=count, dropout=st.floats(0, 0.99)),
        "train": st.fixed_dictionaries(
            {"steps": st.integers(1, 500), "micro": st.integers(1, 9), "times": st.integers(1, 9)}
        ).flatmap(train_table),
        "sample": table({"num_images": count}, guidance_scale=above_zero, top_k=count, top_p=st.floats(0.1, 1)),
    },
    seed=st.integers(0, 2**31 - 1),
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    requires=st.lists(words, max_size=3),
    tokens=table(augment=st.sampled_from(["none", "flip", "ten-crop"]), min_psnr=share),
    noise=named("none") | named("fixed", rate=share) | named("linear", start_level=share, end_level=share),
    regularizers=st.lists(
        named("codebook-embedding", weight=share, decode_layer=st.integers(0, 9), encode=st.booleans()), max_size=3
    ),
    evaluate=table(
        features=st.sampled_from(["inception", "classifier"]),
        feature_weights=words,
        classifier=table(steps=count, min_accuracy=share),
    ),
)


@given(recipes)
def test_a_valid_recipe_comes_back_from_its_plain_values(content: Content) -> None:
    before = copy.deepcopy(content)
    recipe = load_recipe(content)
    assert content == before  # what is given is not touched
    assert load_recipe(recipe_to_dict(recipe)) == recipe


@given(recipes)
def test_a_valid_recipe_comes_back_from_a_toml_file(tmp_path_factory: pytest.TempPathFactory, content: Content) -> None:
    recipe = load_recipe(content)
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe_to_dict(recipe)), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert load_recipe(str(path)) == recipe


@given(recipes)
def test_what_a_recipe_says_is_what_it_holds(content: Content) -> None:
    plain = recipe_to_dict(load_recipe(content))

    def check(said: Any, held: Any) -> None:
        if isinstance(said, dict):
            for key, value in said.items():
                check(value, held[key])
        elif isinstance(said, list):
            for value, other in zip(said, held, strict=True):
                check(value, other)
        else:
            assert said == held

    check(content, plain)


def full(tiny_recipe: Callable[..., Content]) -> Content:
    """A recipe with every table and every default written out."""
    content = tiny_recipe(
        tokenizer={"weights": "w.pt", "fit": {}},
        train={"micro_batch": 2, "deepspeed": {}},
        evaluate={"feature_weights": "f.pt"},
        requires=["a-package"],
    )
    content["backbone"]["mlp_size"] = 8
    content["regularizers"].append({"name": "codebook-embedding", "decode_layer": 1})
    return recipe_to_dict(load_recipe(content))


def tables_of(content: Content, prefix: Path_ = ()) -> Iterator[Path_]:
    """Paths of all tables, except DeepSpeed's, whose keys are its own."""
    yield prefix
    for key, value in content.items():
        if isinstance(value, dict) and key != "deepspeed":
            yield from tables_of(value, (*prefix, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    yield from tables_of(item, (*prefix, key, index))


def leaves_of(content: Content, prefix: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    for path in tables_of(content):
        for key, value in at(content, path).items():
            if not isinstance(value, dict) and not (isinstance(value, list) and value and isinstance(value[0], dict)):
                yield (*path, key), value


def at(content: Any, path: Path_) -> Any:
    for key in path:
        content = content[key]
    return content


def location(path: Path_) -> str:
    *table_path, key = map(str, path)
    return f"[{'.'.join(table_path)}] {key}: " if table_path else f"{key}: "


def problems(content: Any, overrides: list[str] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(content, overrides or [])
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def wrong_values(value: Any) -> list[Any]:
    """Values of other types that a lenient reader might convert."""
    if isinstance(value, bool):
        return [int(value), str(value).lower(), float(value)]
    if isinstance(value, int):
        return [str(value), float(value), value + 0.5, True, [value]]
    if isinstance(value, float):
        return [str(value), True, [value]]
    if isinstance(value, str):
        return [3, 0.5, True, [value]]
    return [3, "ab", True]


@given(st.data())
def test_an_unknown_key_anywhere_is_reported_with_its_table(
    tiny_recipe: Callable[..., Content], data: st.DataObject
) -> None:
    content = full(tiny_recipe)
    path = data.draw(st.sampled_from(list(tables_of(content))))
    known = at(content, path)
    key = data.draw(
        st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=9).filter(
            lambda key: (
                key not in known and key not in ("held_out", "train", "train_images", "pretokenized", "needs", "noise")
            )
        )
    )
    known[key] = data.draw(st.sampled_from([1, "text", [1], True]))
    (problem,) = problems(content)
    assert problem.startswith(f"<recipe>: {location((*path, key))}unknown key")


def test_an_unknown_key_comes_with_the_nearest_known_one(tiny_recipe: Callable[..., Content]) -> None:
    content = tiny_recipe(train={"warmup_step": 3}, tokenizer={"wieghts": "x"}, noise={"naem": 1}, smaple={})
    found = sorted(problems(content))
    assert [problem.partition(";")[0] for problem in found] == [
        "<recipe>: [noise] naem: unknown key (did you mean 'name'?)",
        "<recipe>: [smaple]: unknown key (did you mean 'sample'?)",
        "<recipe>: [tokenizer] wieghts: unknown key (did you mean 'weights'?)",
        "<recipe>: [train] warmup_step: unknown key (did you mean 'warmup_steps'?)",
    ]
    assert "fit" in found[2].partition("; known: ")[2].split(", ")


@given(st.data())
def test_a_value_of_another_type_is_never_converted(tiny_recipe: Callable[..., Content], data: st.DataObject) -> None:
    content = full(tiny_recipe)
    path, value = data.draw(st.sampled_from(list(leaves_of(content))))
    wrong = data.draw(st.sampled_from(wrong_values(value)))
    at(content, path[:-1])[path[-1]] = wrong
    (problem,) = problems(content)
    assert problem.startswith(f"<recipe>: {location(path)}expected ")


@given(st.data())
def test_an_item_of_another_type_is_never_converted(tiny_recipe: Callable[..., Content], data: st.DataObject) -> None:
    content = full(tiny_recipe)
    lists = [(path, value) for path, value in leaves_of(content) if isinstance(value, list) and value]
    assert len(lists) >= 3
    path, value = data.draw(st.sampled_from(lists))
    index = data.draw(st.integers(0, len(value) - 1))
    value[index] = data.draw(st.sampled_from(wrong_values(value[index])))
    (problem,) = problems(content)
    assert problem.startswith(f"<recipe>: {location((*path, index))}expected ")


@pytest.mark.parametrize("number", [0, 1])
def test_a_whole_number_may_stand_for_a_fraction_and_becomes_one(
    number: int, tiny_recipe: Callable[..., Content]
) -> None:
    value = load_recipe(tiny_recipe(train={"clip": number})).train.clip
    assert value == number
    assert type(value) is float


@given(st.data())
def test_all_errors_of_a_recipe_are_reported_at_once(tiny_recipe: Callable[..., Content], data: st.DataObject) -> None:
    content = full(tiny_recipe)
    # A component of another name has other settings, so nothing can be said of the rest of its table.
    leaves = [(path, value) for path, value in leaves_of(content) if path[-1] != "name" or len(path) == 1]
    chosen = data.draw(st.lists(st.sampled_from(range(len(leaves))), min_size=2, max_size=6, unique=True))
    expected = []
    for path, value in (leaves[index] for index in chosen):
        at(content, path[:-1])[path[-1]] = wrong_values(value)[0]
        expected.append(f"<recipe>: {location(path)}expected")
    for path in data.draw(st.lists(st.sampled_from(list(tables_of(content))), max_size=3, unique=True)):
        at(content, path)["zzz"] = 1
        expected.append(f"<recipe>: {location((*path, 'zzz'))}unknown")
    assert sorted(problem[: problem.index(": ", 10)] for problem in problems(content)) == sorted(
        line[: line.index(": ", 10)] for line in expected
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.lr", -1, "[train] lr: expected > 0, got -1.0"),
        ("train.betas", [0.9, 1.5], "[train] betas: expected < 1, got 1.5"),
        ("train.betas", [0.9], "[train] betas: expected 2 values, got 1"),
        (
            "train.precision",
            "int4",
            "[train] precision: expected one of 'fp32', 'bf16', 'bf16-autocast', 'fp16', got 'int4'",
        ),
        ("train.deepspeed", 3, "[train] deepspeed: expected a table, got 3"),
        ("train.lr", 10**400, "[train] lr: "),
        ("train.warmup_steps", 4, "[train]: warmup_steps (4) must be below steps (4)"),
        ("train.end_lr", 1.0, "[train]: end_lr (1.0) must not exceed lr (0.01)"),
        ("train.micro_batch", 3, "[train]: micro_batch (3) must divide global_batch (8)"),
        ("train", 3, "train: expected a table, got 3"),
        ("noise", 3, "noise: expected a table with the name of a noise, got 3"),
        ("noise.span_end", 0.0, "[noise]: span_end (0.0) must be greater than span_start (0.0)"),
        ("noise.start_level", 2, "[noise] start_level: expected ≤ 1, got 2.0"),
        ("noise.name", "lienar", "[noise] name: unknown noise 'lienar' (did you mean 'linear'?); installed: fixed, "),
        ("regularizers", "x", "regularizers: expected a list of "),
        ("regularizers", [3], "[regularizers] 0: expected a table with the name of a regularizer, got 3"),
        ("regularizers.0.projektion_dim", 3, "[regularizers.0] projektion_dim: unknown key (did you mean "),
        ("backbone.num_heads", 3, "[backbone]: hidden_size (16) must be a multiple of num_heads (3)"),
        ("evaluate.classifier.steps", 0, "[evaluate.classifier] steps: expected ≥ 1, got 0"),
        ("tokenizer.channel_mult", [], "[tokenizer] channel_mult: expected at least 1 value"),
        ("tokenizer.fit.lr", 0, "[tokenizer.fit] lr: expected > 0, got 0.0"),
        ("tokenizer.weights", 3, "[tokenizer] weights: expected a string, got 3"),
        ("name", "", "name: expected the name of one folder"),
        ("seed", 2**31, "seed: expected < 2147483648, got 2147483648"),
    ],
)
def test_the_same_checks_meet_a_value_in_a_recipe_and_one_given_by_set(
    key: str, value: Any, expected: str, tiny_recipe: Callable[..., Content]
) -> None:
    content = tiny_recipe()
    target: Any = content
    *tables, last = key.split(".")
    for part in tables:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    target[last] = value
    assert [problem.startswith(f"<recipe>: {expected}") for problem in problems(content)] == [True]
    override = f"{key}={toml(value)}"
    (problem,) = problems(tiny_recipe(), [override])
    if ": " in expected.partition("]")[0] or not expected.startswith("[") or "]: " not in expected:
        assert problem.startswith(f"--set {override}: {expected}")
    else:  # two keys that don't fit together: the table is named
        assert problem.endswith(expected)


def toml(value: Any) -> str:
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip().replace("\n", "")


@pytest.mark.parametrize("key", ["train", "data", "name", "backbone", "sample"])
def test_a_missing_table_or_key_is_named(key: str, tiny_recipe: Callable[..., Content]) -> None:
    content = tiny_recipe()
    del content[key]
    assert problems(content) == [f"<recipe>: {key}: {key} is missing"]


def test_a_missing_key_of_a_table_is_named_with_its_table(tiny_recipe: Callable[..., Content]) -> None:
    content = tiny_recipe()
    del content["train"]["steps"]
    del content["data"]["source"]
    del content["tokenizer"]["name"]
    found = problems(content)
    assert len(found) == 3
    assert "<recipe>: [train] steps: steps is missing" in found
    assert "<recipe>: [data] source: source is missing" in found
    assert any(line.startswith("<recipe>: [tokenizer] name: expected the name of a tokenizer: ") for line in found)


def test_an_uninstalled_requirement_is_told_only_where_a_component_is_missing(
    tiny_recipe: Callable[..., Content],
) -> None:
    load_recipe(tiny_recipe(requires=["no-such-package"]))
    content = tiny_recipe(requires=["no-such-package", "torch", "another @ ./plugins/another"])
    content["backbone"] = {"name": "not-installed"}
    first, second, third = problems(content)
    assert first.startswith("<recipe>: [backbone] name: unknown backbone 'not-installed'")
    assert second == "<recipe>: requires: no-such-package is not installed; run: pip install no-such-package"
    assert third == "<recipe>: requires: another is not installed; run: pip install ./plugins/another"


# --set


@given(st.data())
def test_set_does_what_writing_the_value_into_the_recipe_does(
    tiny_recipe: Callable[..., Content], data: st.DataObject
) -> None:
    edited = tiny_recipe()
    settable = {
        "seed": st.integers(0, 99),
        "name": words.filter(lambda word: word.isalnum()),
        "train.lr": st.floats(0.1, 1),
        "train.betas": st.lists(share.filter(lambda x: x < 1), min_size=2, max_size=2),
        "noise.start_level": share,
        "regularizers.0.weight": share,
        "evaluate.classifier.steps": st.integers(1, 9),  # a table that the recipe does not have
        "tokens.augment": st.sampled_from(["flip", "none"]),
    }
    keys = data.draw(st.lists(st.sampled_from(sorted(settable)), unique=True))
    overrides = []
    for key in keys:
        value = data.draw(settable[key])
        overrides.append(f"{key}={toml(value)}")
        target: Any = edited
        *tables, last = key.split(".")
        for part in tables:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        target[last] = value
    assert load_recipe(tiny_recipe(), overrides) == load_recipe(edited)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.steps", "expected KEY=VALUE, such as train.steps=10"),
        ("=3", "expected KEY=VALUE"),
        ("train..steps=3", "expected KEY=VALUE"),
        ("train.steps.more=3", "train.steps is not a table"),
        ("regularizers.1.weight=3", "regularizers has items 0 to 0"),
        ("regularizers.-1.weight=3", "regularizers has items 0 to 0"),
        ("regularizers.².weight=3", "regularizers has items 0 to 0"),
        ("regularizers.first.weight=3", "regularizers has items 0 to 0"),
        ("requires.0=a", "requires has no items"),
    ],
)
def test_a_set_that_fits_nowhere_is_told(override: str, problem: str, tiny_recipe: Callable[..., Content]) -> None:
    (found,) = problems(tiny_recipe(requires=[]), [override])
    assert found.startswith(f"--set {override}: {problem}")


def test_a_set_cannot_smuggle_a_second_key_in(tiny_recipe: Callable[..., Content]) -> None:
    assert problems(tiny_recipe(), ["train.steps=3\nlr=1"]) == [r"--set train.steps='3\nlr=1': expected a single value"]


def test_a_bare_word_is_a_string_and_all_else_is_toml(tiny_recipe: Callable[..., Content]) -> None:
    recipe = load_recipe(tiny_recipe(), ["name=a-run", "device = cpu", 'requires=["x"]', "noise={name='fixed'}"])
    assert (recipe.name, recipe.device, recipe.requires) == ("a-run", "cpu", ("x",))
    assert recipe.noise is not None
    assert recipe.noise.name == "fixed"
    assert load_recipe(tiny_recipe(), ["regularizers=[]"]).regularizers == ()
    assert load_recipe(tiny_recipe(), ["name=first", "name=second"]).name == "second"


def test_naming_another_component_by_set_drops_the_settings_of_the_old_one(
    tiny_recipe: Callable[..., Content],
) -> None:
    content = tiny_recipe(noise={"start_level": 0.5, "end_level": 0.1})
    assert recipe_to_dict(load_recipe(content, ["noise.name=fixed"]))["noise"] == {"name": "fixed", "rate": 0.2}
    for overrides in (["noise.name=fixed", "noise.rate=0.3"], ["noise.rate=0.3", "noise.name=fixed"]):
        assert recipe_to_dict(load_recipe(content, overrides))["noise"] == {"name": "fixed", "rate": 0.3}
    kept = recipe_to_dict(load_recipe(content, ["noise.name=linear"]))["noise"]
    assert (kept["start_level"], kept["end_level"]) == (0.5, 0.1)
    assert load_recipe(content, ["name=another"]).train == load_recipe(content).train


OF_ANOTHER_TOKENIZER = ["name=maskgit-vqgan", "fit.steps=5", "fit.warmup_steps=2", "codebook_size=7"]


@given(st.permutations([f"tokenizer.{change}" for change in OF_ANOTHER_TOKENIZER]))
def test_what_is_set_of_another_component_is_kept_in_whatever_order_it_is_named(
    tiny_recipe: Callable[..., Content], overrides: list[str]
) -> None:
    content = tiny_recipe(tokenizer={"name": "theirs", "fit": {"min_psnr": 13.0}, "embedding_dim": 6})
    tokenizer = load_recipe(content, overrides).tokenizer
    assert tokenizer.fit == FitTable(steps=5, warmup_steps=2)
    assert tokenizer.settings == MaskGITVQGANSettings(codebook_size=7)


# extends


def write(path: Path, content: Content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(content), encoding="utf-8")
    return path


def test_a_child_is_laid_over_its_base_table_by_table(tmp_path: Path, tiny_recipe: Callable[..., Content]) -> None:
    write(tmp_path / "base.toml", tiny_recipe(train={"clip": 0.5}, evaluate={"classifier": {"steps": 9}}))
    child = write(
        tmp_path / "child.toml",
        {"extends": "base.toml", "name": "child", "train": {"lr": 0.5}, "evaluate": {"classifier": {"batch": 7}}},
    )
    expected = tiny_recipe(
        name="child", train={"clip": 0.5, "lr": 0.5}, evaluate={"classifier": {"steps": 9, "batch": 7}}
    )
    assert load_recipe(child) == load_recipe(expected)


def test_lists_are_replaced_and_not_joined(tmp_path: Path, tiny_recipe: Callable[..., Content]) -> None:
    write(tmp_path / "base.toml", tiny_recipe())
    child = write(tmp_path / "child.toml", {"extends": "base.toml", "regularizers": [], "train": {"betas": [0.1, 0.2]}})
    recipe = load_recipe(child)
    assert recipe.regularizers == ()
    assert recipe.train.betas == (0.1, 0.2)


def test_bases_have_bases_and_are_found_beside_the_file_that_names_them(
    tmp_path: Path, tiny_recipe: Callable[..., Content], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "deep" / "er" / "root.toml", tiny_recipe(seed=1, train={"clip": 0.1}))
    write(tmp_path / "deep" / "middle.toml", {"extends": "er/root.toml", "seed": 2, "train": {"lr": 0.2}})
    write(tmp_path / "top.toml", {"extends": "deep/middle.toml", "train": {"end_lr": 0.1}})
    monkeypatch.chdir(tmp_path / "deep")
    recipe = load_recipe(tmp_path / "top.toml")
    assert (recipe.seed, recipe.train.clip, recipe.train.lr, recipe.train.end_lr) == (2, 0.1, 0.2, 0.1)


def test_naming_another_component_drops_the_settings_of_the_bases(
    tmp_path: Path, tiny_recipe: Callable[..., Content]
) -> None:
    write(tmp_path / "base.toml", tiny_recipe(noise={"start_level": 0.5}, tokenizer={"weights": "w.pt"}))
    other = write(tmp_path / "other.toml", {"extends": "base.toml", "noise": {"name": "fixed"}})
    assert recipe_to_dict(load_recipe(other))["noise"] == {"name": "fixed", "rate": 0.2}
    same = write(tmp_path / "same.toml", {"extends": "base.toml", "noise": {"name": "linear", "end_level": 0.3}})
    noise = recipe_to_dict(load_recipe(same))["noise"]
    assert (noise["start_level"], noise["end_level"]) == (0.5, 0.3)
    # What a base says of no component by name is of the one that is named.
    plain = tiny_recipe(noise={"end_level": 0.2})
    del plain["noise"]["name"]
    write(tmp_path / "nameless.toml", plain)
    named = write(tmp_path / "named.toml", {"extends": "nameless.toml", "noise": {"name": "linear"}})
    assert recipe_to_dict(load_recipe(named))["noise"]["end_level"] == 0.2
    nested = {"data": {"source": {"name": "shards", "num_classes": 3}, "shard_size": 5}}
    shards = load_recipe(write(tmp_path / "shards.toml", {"extends": "base.toml", **nested}))
    assert recipe_to_dict(shards)["data"]["source"]["num_classes"] == 3


@pytest.mark.parametrize("chain", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_a_recipe_that_extends_itself_is_an_error(chain: list[str], tmp_path: Path) -> None:
    for name, parent in zip(chain, [*chain[1:], chain[0]], strict=True):
        write(tmp_path / f"{name}.toml", {"extends": f"{parent}.toml"})
    (problem,) = problems(tmp_path / "a.toml")
    assert "a.toml: extends itself, through a.toml" in problem
    assert problem.endswith(" → ".join(f"{name}.toml" for name in chain))


def test_a_base_reached_twice_without_a_cycle_is_none(tmp_path: Path, tiny_recipe: Callable[..., Content]) -> None:
    write(tmp_path / "base.toml", tiny_recipe())
    write(tmp_path / "other" / "base.toml", {"extends": "../base.toml"})  # the same name in another folder
    assert load_recipe(write(tmp_path / "child.toml", {"extends": "other/base.toml"})).name == "tiny"


def test_a_missing_base_and_a_wrong_one_are_told(tmp_path: Path, tiny_recipe: Callable[..., Content]) -> None:
    write(tmp_path / "base.toml", tiny_recipe())
    (problem,) = problems(write(tmp_path / "child.toml", {"extends": "bsae.toml"}))
    where = f"{tmp_path / 'child.toml'}: extends: {tmp_path / 'bsae.toml'}"
    assert problem == f"{where}: no such recipe file (did you mean 'base.toml'?)"
    # Near are the file itself, and a recipe that comes with rearkit.
    (problem,) = problems(write(tmp_path / "mine.toml", {"extends": "mnist.toml"}))
    assert problem.startswith(f"{tmp_path / 'mine.toml'}: extends: ")
    assert "did you mean 'mnist', without a folder and a suffix?" in problem and "'mine.toml'" not in problem
    (problem,) = problems(write(tmp_path / "child.toml", {"extends": 3}))
    assert problem.endswith("child.toml: extends: expected the path of a recipe file, got 3")
    (problem,) = problems({"extends": "base.toml"})
    assert problem == "<recipe>: extends: only a recipe file can extend another"


def test_a_package_that_is_missing_is_asked_for_where_it_is_named(
    tmp_path: Path, tiny_recipe: Callable[..., Content]
) -> None:
    path = write(tmp_path / "base.toml", tiny_recipe())
    found = problems(path, ["noise.name=theirs", "requires=['theirs-of-nobody']"])
    assert found[-1].startswith("--set requires=") and "theirs-of-nobody is not installed" in found[-1]


def test_sweeps_and_recipes_taken_for_each_other_are_told(tmp_path: Path, tiny_recipe: Callable[..., Content]) -> None:
    recipe = write(tmp_path / "recipe.toml", tiny_recipe())
    sweep = write(tmp_path / "sweep.toml", {"name": "s", "recipe": "recipe.toml", "seeds": [0]})
    assert problems(sweep) == [f"{sweep}: is a sweep, not a recipe; run: python -m rearkit sweep {sweep}"]
    with pytest.raises(RecipeError, match=rf"{recipe}: is a recipe, not a sweep; run: python -m rearkit run {recipe}"):
        load_sweep(recipe)


def test_each_error_names_the_file_or_set_that_it_comes_from(
    tmp_path: Path, tiny_recipe: Callable[..., Content]
) -> None:
    base = write(tmp_path / "base.toml", tiny_recipe(train={"clip": -1, "lr": -1}, noise={"end_level": 7}, seed=-1))
    child = write(
        tmp_path / "child.toml",
        {"extends": "base.toml", "train": {"lr": -2}, "backbone": {"layers": 3}, "sample": {"top_p": 3}},
    )
    found = problems(child, ["sample.top_p=4", "regularizers.0.weight=-1", "evaluate.classifier.lr=0", "data.zz=1"])
    assert sorted(problem.partition(" expected")[0].partition(" unknown")[0] for problem in found) == sorted(
        [
            f"{base}: [train] clip:",
            f"{base}: [noise] end_level:",
            f"{base}: seed:",
            f"{child}: [train] lr:",
            f"{child}: [backbone] layers:",
            "--set sample.top_p=4: [sample] top_p:",
            "--set regularizers.0.weight=-1: [regularizers.0] weight:",
            "--set evaluate.classifier.lr=0: [evaluate.classifier] lr:",
            "--set data.zz=1: [data] zz:",
        ]
    )


def test_a_table_given_by_set_is_not_blamed_on_the_file_that_it_replaces(
    tmp_path: Path, tiny_recipe: Callable[..., Content]
) -> None:
    path = write(tmp_path / "recipe.toml", tiny_recipe(noise={"start_level": 0.5}))
    override = "noise={name='linear', start_level=3}"
    assert problems(path, [override]) == [f"--set {override}: [noise] start_level: expected ≤ 1, got 3.0"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name = ", "not valid TOML"),
        (b"name = 'a'\nname = 'b'", "not valid TOML"),
        (b"name = '\xff'", "cannot be read"),
    ],
)
def test_a_file_that_is_no_toml_is_named(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    (found,) = problems(tmp_path / "bad.toml")
    assert found.startswith(f"{tmp_path / 'bad.toml'}: {problem}")


def test_a_file_of_an_editor_of_windows_is_a_recipe(tmp_path: Path, tiny_recipe: Callable[..., Content]) -> None:
    text = write(tmp_path / "plain.toml", tiny_recipe()).read_bytes()
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert load_recipe(tmp_path / "marked.toml") == load_recipe(tmp_path / "plain.toml")


def test_a_folder_and_a_missing_file_are_no_recipes(tmp_path: Path) -> None:
    (found,) = problems(tmp_path)
    assert "cannot be read" in found
    (found,) = problems(tmp_path / "gone.toml")
    assert found == f"{tmp_path / 'gone.toml'}: no such recipe file"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_that_comes_with_rearkit_is_valid(path: Path) -> None:
    try:
        recipe = load_recipe(path)
    except RecipeError as error:  # a recipe for a plugin that is not installed says so, and nothing else
        assert all("; installed:" in problem or "requires:" in problem for problem in error.problems)
        assert any("run: pip install" in problem for problem in error.problems)
    else:
        assert isinstance(recipe, Recipe)
        assert recipe.name == path.stem


# Numbers, sizes and depths beyond sense


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lr", float("inf"), "expected a number up to 1e+15 in size, got inf"),
        ("clip", float("inf"), "got inf"),
        ("lr", float("nan"), "got nan"),
        ("weight_decay", 1e300, "got 1e+300"),
        ("lr", 10**400, "expected a number up to 9007199254740992 in size"),
        ("steps", 10**5000, "expected a number up to 9007199254740992 in size"),
        ("offload_path", "a\0b", "expected text without NUL characters, got 'a\\x00b'"),
    ],
    # Such a number has no name.
    ids=["infinity", "another", "NaN", "large", "larger", "digits", "NUL"],
)
def test_values_beyond_sense_are_refused_by_table_and_key(
    key: str, value: Any, said: str, tiny_recipe: Callable[..., Content]
) -> None:
    content = tiny_recipe()
    content["train"][key] = value
    (problem,) = problems(content)
    assert f"[train] {key}: " in problem and said in problem and len(problem) < 300


@pytest.mark.parametrize(
    "text",
    [
        "steps = 1" + "0" * 5000,
        "x = " + "[" * 3000 + "]" * 3000,
        "x = " + "[" * 30 + "]" * 30,
        ".".join("a" * 30) + " = 1",
    ],
    ids=["digits", "far too deep", "lists", "tables"],
)
def test_a_file_of_digits_or_brackets_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text(text)
    with pytest.raises(
        RecipeError, match=r"odd\.toml: (not valid TOML: Exceeds|tables and lists are nested)"
    ) as caught:
        load_recipe(tmp_path / "odd.toml")
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=1" + "0" * 5000,
        f"regularizers.{'1' * 5000}.weight=1",
        "x=" + "[" * 3000,
        "x=" + "[" * 30 + "]" * 30,
        ".".join("a" * 30) + "=1",
    ],
    ids=["digits", "digits of an item", "far too deep", "lists", "tables"],
)
def test_a_change_of_digits_or_brackets_is_one_line(override: str, tiny_recipe: Callable[..., Content]) -> None:
    (problem,) = problems(tiny_recipe(), [override])
    assert problem.startswith("--set ") and "\n" not in problem
    told = ("Exceeds the limit", "more than 20 deep", "regularizers.1111")
    assert any(part in problem for part in told)


def test_a_deep_mapping_is_one_line(tiny_recipe: Callable[..., Content]) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    (problem,) = problems({**tiny_recipe(), "x": deep})
    assert "nested more than 20 deep" in problem


def test_a_chain_of_files_has_an_end(tmp_path: Path) -> None:
    for number in range(1500):
        (tmp_path / f"{number}.toml").write_text(f'extends = "{number + 1}.toml"\n')
    with pytest.raises(RecipeError, match=r"0\.toml: extends more than 20 files, one through the other"):
        load_recipe(tmp_path / "0.toml")


def test_a_thousand_errors_are_twenty_and_a_number(tiny_recipe: Callable[..., Content]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({**tiny_recipe(), **{f"k{number}": 1 for number in range(1000)}})
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1], len(caught.value.problems)) == (21, "and 980 more", 1000)


def test_a_message_has_two_thousand_characters_at_most(tiny_recipe: Callable[..., Content]) -> None:
    content = tiny_recipe()
    content["sample"]["precision"] = "x" * 100_000
    with pytest.raises(RecipeError) as caught:
        load_recipe(content)
    assert len(str(caught.value)) == 2_000 and str(caught.value).endswith("…")


@pytest.mark.parametrize("key", ["train", "held_out"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a{0..b.tar", "its braces do not pair"),
        ("{{{{a}.tar", "its braces do not pair"),
        ("a{000000..999999999999}.tar", "its braces mean 1,000,000,000,000 shards, more than 1,000,000"),
        ("{a,b}" * 40, "its braces mean 1,099,511,627,776 shards"),
        ("{0.." + "9" * 5000 + "}", "its braces mean endlessly many shards"),
        ("a\0b.tar", "expected text without NUL characters"),
    ],
    ids=["open", "four open", "a range", "forty pairs", "digits", "NUL"],
)
def test_lists_of_shards_are_refused_by_table_and_key(
    key: str, text: str, said: str, tiny_recipe: Callable[..., Content]
) -> None:
    source = {"name": "shards", "num_classes": 10, key: text}
    (problem,) = problems({**tiny_recipe(), "data": {"source": source}})
    assert f"[data.source] {key}: {said}" in problem
