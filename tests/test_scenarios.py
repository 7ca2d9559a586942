"""Scenarios: every split is drawn as declared, and a new scenario is an entry of one file.

Manifests are drawn, nothing is spoken, except where the command line is tried.
"""

import hashlib
import json
import pickle
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, SHARED, alspeech
from scipy.stats import binomtest

from alspeech.speech import corpus, fsdd, manifests, phrases, synthesis, validation
from alspeech.speech.features import input_frames, output_frames
from alspeech.speech.text import ENGLISH
from alspeech.workshop import config
from alspeech.workshop.config import (
    SPLITS,
    CorpusConfig,
    Draw,
    Scenario,
    Settings,
    load_settings,
    scenarios,
    shares,
)
from alspeech.workshop.errors import UserError

SIZES = CorpusConfig(base=500, pool=1000, validation=100, test=600)
SPOKEN = {name: own for name, own in scenarios().items() if not own.misfit("synthetic")}
RECORDED = {name: own for name, own in scenarios().items() if own.column}
EIGHT = Draw().accents


@pytest.fixture(scope="module")
def drawn():
    """Every scenario's manifest by its name, drawn once."""
    known = {}

    def draw(name):
        if name not in known:
            known[name] = synthesis.draw_manifest(SIZES, SPOKEN[name])
        return known[name]

    return draw


@pytest.fixture
def companion(root, monkeypatch):
    """An empty companion of our own: ``companion(text)`` adds to its scenarios."""
    monkeypatch.setattr(config, "ROOT", root)

    def add(text):
        with open(root / "configs" / "scenarios.yaml", "a") as file:
            file.write("\n" + text)
        return root

    return add


# ---------------------------------------------------------------- as declared


@pytest.mark.parametrize(
    "language, digest", [("en", "c7bdeb0b6228d1cb"), ("cmn", "d6cc791b9532ab22")]
)
def test_even_is_drawn_as_it_was_before_there_were_scenarios(language, digest):
    """The hash is of the manifest of commit dfd9726, whose four distributions were "mixed"."""
    alphabet = "english" if language == "en" else "learned"
    sizes = CorpusConfig(60, 60, 60, 60, language=language, alphabet=alphabet)
    for scenario in (SPOKEN["even"], None):
        manifest = synthesis.draw_manifest(sizes, scenario)
        written = json.dumps(manifest.to_dict("records")).encode()
        assert hashlib.sha256(written).hexdigest().startswith(digest)


def assert_shares(values, declared):
    """Counts are those of draws with the declared shares: none is rarer than one in 10^5."""
    counts, declared = Counter(values), dict(declared)
    assert set(counts) <= {name for name, share in declared.items() if share}
    for name, share in declared.items():
        part = share / sum(declared.values())
        assert binomtest(counts[name], len(values), part).pvalue > 1e-5, (name, counts)


@pytest.mark.parametrize("name", SPOKEN)
def test_every_split_has_its_declared_shares(drawn, name):
    for split, part in drawn(name).groupby("split"):
        draw = SPOKEN[name].draw(split)
        new = part[~part["repeat"]] if "repeat" in part else part
        assert_shares(new["kind"], draw.kinds)
        assert_shares(part["accent"], draw.accents)
        said = part[~part["kind"].isin(["silence", "unintelligible"])]
        assert said["snr_db"].between(*draw.snr_db).all()
        assert part.loc[part["kind"] == "silence", "snr_db"].isna().all()
        if "repeat" in part:
            assert_shares(
                part["repeat"].map(str), {"True": draw.repeats, "False": 1 - draw.repeats}
            )
        if draw.tail is not None:
            assert_shares(part["frequency"], {"tail": draw.tail, "head": 1 - draw.tail})


@pytest.mark.parametrize("name", SPOKEN)
def test_base_and_pool_share_their_voices_and_nobody_else_has_them(drawn, name):
    voices = drawn(name).groupby("split")["voice"].agg(set)
    assert voices["base"] & voices["pool"]
    for split in ("validation", "test"):
        assert not voices[split] & (voices["base"] | voices["pool"])
    assert not voices["validation"] & voices["test"]


@pytest.mark.parametrize("name", SPOKEN)
def test_the_macro_error_s_groups_are_a_column_that_the_test_fills(drawn, name):
    test = drawn(name).query("split == 'test'")
    groups = test[SPOKEN[name].group]
    assert groups.notna().all() and groups.value_counts().min() >= 10


def test_rare_topics_are_rare_where_it_is_learned_and_a_quarter_each_in_the_test(drawn):
    declared = SPOKEN["rare_topics"]
    assert dict(declared.draw("pool").kinds) == {"command": 88, "digits": 4, "name": 4, "city": 4}
    assert declared.draw("pool") == declared.draw("base") == declared.draw("validation")
    test = drawn("rare_topics").query("split == 'test'")["kind"].value_counts(normalize=True)
    assert set(test.index) == {"command", "digits", "name", "city"} and test.min() > 0.18


def test_eight_accents_weigh_alike_in_the_test_of_rare_accents(drawn):
    learned = dict(SPOKEN["rare_accents"].base.accents)
    assert len(learned) == 8 and learned["en-us"] / sum(learned.values()) == pytest.approx(
        0.9, abs=1e-3
    )
    heard = drawn("rare_accents").query("split == 'test'")["accent"].value_counts(normalize=True)
    assert len(heard) == 8 and heard.min() > 0.06


def test_base_of_the_long_tail_names_frequent_places_only(drawn):
    names = phrases.places()
    assert len(names) == len(set(names)) == 2000
    assert all(set(name) <= set(ENGLISH.characters) for name in names)
    manifest, head = drawn("long_tail"), SPOKEN["long_tail"].head
    rank = {name: i for i, name in enumerate(names)}
    named = manifest["text"].str.split().map(lambda ws: [rank[w] for w in ws if w in rank])
    assert named.map(len).min() == 1
    told = np.where(named.map(max) >= head, "tail", "head")
    assert (manifest["frequency"] == told).all()
    split = manifest["split"]
    assert named[split == "base"].map(max).max() < head
    assert (named[(split == "test") & (manifest["frequency"] == "tail")].map(min) >= head).all()
    # of what the pool names as Zipf's law has it, a bit more than a quarter lies beyond the head
    pool = np.concatenate(named[split == "pool"].to_numpy())
    law = 1 / np.arange(1, 2001)
    assert np.mean(pool >= head) == pytest.approx(law[head:].sum() / law.sum(), abs=0.05)


def test_calls_repeat_thirty_phrases_and_the_test_repeats_nothing(drawn):
    calls = drawn("call_log")
    repeated, new = calls[calls["repeat"]], calls[~calls["repeat"]]
    spoken = repeated["text"].value_counts()
    assert 20 < len(spoken) <= 30 and spoken.iloc[0] > 5 * spoken.median()
    assert set(repeated["split"]) == {"base", "pool"}
    assert new["text"].is_unique and not set(new["text"]) & set(spoken.index)
    # said again, and not played again
    often = repeated[repeated["text"] == spoken.index[0]]
    assert often["speaker"].nunique() > 20 and often["noise_seed"].is_unique
    other = synthesis.draw_manifest(replace(SIZES, seed=1), SPOKEN["call_log"])
    assert set(other.loc[other["repeat"], "text"]) != set(spoken.index)


def test_junk_and_what_nobody_can_transcribe_are_in_the_pool_only(drawn):
    for name, kinds in [("junk", {"silence", "filler"}), ("unintelligible", {"unintelligible"})]:
        found = drawn(name)[drawn(name)["kind"].isin(kinds)]
        assert set(found["split"]) == {"pool"} and set(found["kind"]) == kinds
    heard = drawn("unintelligible").query("kind == 'unintelligible'")
    assert set(heard["text"]) == {"[unintelligible]"} and heard["snr_db"].between(-17, -13).all()
    assert heard["spoken"].nunique() > 100  # it is speech, if nobody hears it
    # the noise is no louder than others' speech
    assert (heard["level_db"] - heard["snr_db"]).between(-32.01, -19.99).all()


def test_what_nobody_can_transcribe_is_paid_for_and_teaches_nothing(drawn, capsys):
    manifest = drawn("unintelligible")
    data = corpus.Corpus(None, manifest, None, ENGLISH)
    bought = manifest[manifest["split"] == "pool"]["utt_id"][:200].tolist()
    learned = data.labelled(bought)
    drowned = manifest.set_index("utt_id").loc[bought, "kind"].eq("unintelligible").sum()
    assert drowned > 30 and len(learned) == SIZES.base + 200 - drowned
    assert f"({drowned})" in capsys.readouterr().err


def test_long_and_short_utterances_have_one_to_fifteen_words(drawn):
    manifest = drawn("long_and_short")
    counts = manifest["text"].str.split().str.len()
    assert counts.min() == 1 and 13 <= counts.max() <= 15
    several = manifest["spoken"].notna()
    assert 0.5 < several.mean() < 0.75  # two thirds are to have more; fifteen words are enough
    assert (manifest["spoken"].str.replace(" | ", " ") == manifest["text"])[several].all()


def test_pauses_are_in_the_audio_and_the_text_fits_in():
    sizes = CorpusConfig(base=6, pool=1, validation=1, test=1)
    scenario = replace(SPOKEN["long_and_short"], base=Draw(parts=(2, 2), kinds=shares(["city"]),
                       pause=1.5, snr_db=(90, 90)))  # fmt: skip
    espeak, model = synthesis.Espeak(), load_settings("laptop").model
    seconds = {}
    for pause in (0.05, 1.5):
        manifest = synthesis.draw_manifest(sizes, scenario).assign(pause=pause)
        audio = [synthesis.render(row, espeak) for row in manifest.itertuples()]
        seconds[pause] = np.array([len(samples) / 16000 for samples in audio])
        if pause == 0.05:  # the least room that there is
            frames = [output_frames(model, input_frames(model, len(samples))) for samples in audio]
            assert all(n >= len(text) for n, text in zip(frames, manifest["text"], strict=True))
    # three pauses of 0.05 to 1.5 s, drawn evenly
    assert 0.5 < np.mean(seconds[1.5] - seconds[0.05]) / (3 * 0.725) < 1.5


def test_large_pool_has_a_size_of_its_own_and_is_drawn_as_even():
    settings = load_settings("laptop", scenario="large_pool")
    assert settings.built.pool == 5600 and settings.build.pool != 5600
    assert settings.drawn.content == scenarios()["even"].content
    assert settings.on("even").built == settings.build


def test_a_homogeneous_pool_says_nothing_twice(drawn):
    manifest = drawn("homogeneous")
    assert manifest["text"].is_unique and set(manifest["kind"]) == {"command"}


# ---------------------------------------------------------------- which one


def test_a_scenario_is_the_preset_s_or_the_named_one(companion):
    root = companion("mine: {base: {kinds: [digits]}}")
    with open(root / "configs" / "tiny.yaml", "a") as file:
        file.write("scenarios: [rare_topics, mine, rare_children]\naloe: {scenario: junk}\n")
    settings = load_settings("tiny")
    assert settings.scenarios == ("rare_topics", "mine") and settings.scenario == "rare_topics"
    assert settings.run == "synthetic-tiny" and not settings.named
    assert settings.on("mine").drawn.base.kinds == (("digits", 1.0),)
    assert settings.on("mine").run == "synthetic-tiny"
    assert settings.of("aloe").scenario == "junk"
    assert settings.of("loss_prediction").scenario == "even"
    named = load_settings("tiny", scenario="mine")
    assert (named.scenarios, named.scenario, named.named) == (("mine",), "mine", True)
    assert named.run == "synthetic-tiny-mine" and named.of("aloe") == named
    # recordings are as they are
    recorded = load_settings("tiny", "kaldi")
    assert recorded.scenarios == ("rare_children",) and recorded.of("aloe").scenario == "even"
    assert load_settings("laptop", "esc10").scenarios == ("even",)
    assert "scenarios" not in config.presets()
    assert pickle.loads(pickle.dumps(named)) == named and hash(named) is not None


def test_every_preset_s_scenarios_are_there():
    for preset in config.presets():
        assert load_settings(preset).scenario in scenarios()
    assert load_settings("laptop").of("pseudo_labels").scenario == "unlike"


@pytest.mark.parametrize("name", scenarios())
def test_every_scenario_tells_a_reader_what_it_is(name):
    assert 60 < len(scenarios()[name].about) < 300 and scenarios()[name].about.endswith(".")


# ---------------------------------------------------------------- keys


def key(settings) -> str:
    corpus.corpus.cache_clear()
    return corpus.corpus(settings).key


def test_a_corpus_is_drawn_anew_where_what_is_drawn_has_changed(companion):
    file = companion("mine: {about: one, base: {kinds: [digits]}}\nyours: {}") / "configs"
    file /= "scenarios.yaml"
    text = file.read_text()

    def with_change(old, new):
        assert text.count(old) == 1
        file.write_text(text.replace(old, new))
        return key(load_settings("tiny", scenario="mine"))

    before = key(load_settings("tiny", scenario="mine"))
    assert with_change("about: one", "about: two") == before
    assert with_change("yours: {}", "yours: {distinct: true}") == before
    changed = {
        with_change("kinds: [digits]", new)
        for new in ("kinds: [name]", "kinds: {digits: 1, name: 1}", "kinds: {name: 1, digits: 1}")
    }
    changed |= {with_change("about: one", new) for new in ("sizes: {pool: 31}", "distinct: true")}
    changed.add(with_change("about: one", "group: accent"))
    assert len(changed - {before}) == 6
    assert corpus.corpus(load_settings("tiny", scenario="mine")).name == "synthetic-mine"
    assert key(load_settings("tiny", scenario="yours")) != before


OTHER = {"kinds": shares(["digits"]), "accents": shares(["en"]), "snr_db": (1.0, 2.0),
         "parts": (2, 2), "pause": 1.0, "repeats": 0.5, "tail": 0.5}  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
def test_whatever_a_draw_says_is_in_the_key_of_the_corpus(split):
    even = Scenario(phrases=3)
    assert {item.name for item in fields(Draw)} == {*OTHER, "groups"}
    keys = {key(Settings("tiny", drawn=even))}
    for name, value in OTHER.items():
        draws = {other: even.draw(other) for other in SPLITS}
        draws[split] = replace(draws[split], **{name: value})
        keys.add(key(Settings("tiny", drawn=replace(even, **draws))))
    assert len(keys) == 1 + len(OTHER)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("text, words", [
    ("mine: {base: {kinds: {command: 0}}}", ["mine: base", "'command': 0", "sum to nothing"]),
    ("mine: {pool: {kinds: {}}}", ["mine: pool", "sum to nothing"]),
    ("mine: {base: {accents: []}}", ["mine: base", "sum to nothing"]),
    ("mine: {base: {kinds: {name: 1, command: -3}}}", ["mine: base", "command is -3"]),
    ("mine: {base: {kinds: {command: much}}}", ["mine: base", "command is much"]),
    ("mine: {base: {kinds: {command: .nan}}}", ["mine: base", "command is nan"]),
    ("mine: {base: {kinds: 3}}", ["mine: base", "'3'", "list of names"]),
    ("mine: {base: {kind: [command]}}", ["mine: base: unknown key 'kind'", "kinds"]),
    ("mine: {bass: {}}", ["mine: unknown key 'bass'", "base"]),
    ("mine: {test: {snr_db: [9, 3]}}", ["mine: test: snr_db is [9, 3]"]),
    ("mine: {test: {parts: [0, 3]}}", ["mine: test: parts is 0", "greater than or equal to 1"]),
    ("mine: {test: {repeats: 1.5}}", ["mine: test: repeats is 1.5", "less than or equal to 1"]),
    ("mine: {test: {repeats: 0.5}}", ["mine: test: repeats", "how many phrases"]),
    ("mine: {sizes: {pool: 0}}", ["mine", "pool is 0"]),
    ("mine: {sizes: {train: 5}}", ["mine", "train", "base, pool, validation, test"]),
    ("mine: {column: age}", ["mine", "column and groups go together"]),
    ("mine: {group: g, column: age, groups: {old: [9, 3]}}", ["mine", "old is [9, 3]"]),
    ("mine: {group: g, column: age, groups: {old: [50, 99]}, base: {groups: [young]}}",
     ["mine", "base: unknown group 'young'", "old"]),
    ("mine: {column: age, groups: {old: [50, 99]}}", ["mine: group is kind", "new column"]),
    ("mine: 3", ["mine", "3"]),
    ("my own: {}", ["'my own' is no name"]),
    ("../mine: {}", ["'../mine' is no name"]),
    ("mine: [", ["not to be read as YAML: line"]),
])  # fmt: skip
def test_a_bad_scenario_is_one_short_line_that_names_it(companion, text, words):
    companion(text)
    with pytest.raises(UserError) as error:
        load_settings("tiny")
    message = str(error.value)
    assert message.startswith("scenarios.yaml: ") and all(word in message for word in words), (
        message
    )
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize("text, words", [
    ("mine: {pool: {kinds: [comand]}}", ["mine: pool: kinds", "'comand'", "city, place, command"]),
    ("mine: {base: {accents: {en-uz: 1}}}", ["mine: base: accents", "'en-uz'", "en-us"]),
])  # fmt: skip
def test_what_nobody_can_say_is_told_before_anything_is_drawn(companion, text, words):
    companion(text)
    with pytest.raises(UserError) as error:
        corpus.corpus(load_settings("tiny", scenario="mine"))
    assert all(word in str(error.value) for word in ["scenarios.yaml", *words]), error.value


def test_mandarin_has_one_accent():
    with pytest.raises(UserError, match="rare_accents: base: accents: language: cmn has one only"):
        corpus.corpus(load_settings("mandarin", scenario="rare_accents"))


def test_more_distinct_requests_than_there_are_is_one_line():
    with pytest.raises(UserError, match="draws of kind filler gave nothing .* distinct"):
        synthesis.draw_manifest(SIZES, Scenario(distinct=True, base=Draw(kinds=shares(["filler"]))))


@pytest.mark.parametrize("arguments, words", [
    (["--scenario", "rare_topic"], ["unknown scenario 'rare_topic'", "rare_topics"]),
    (["--scenario", "rare_children"], ["rare_children is not for CORPUS=synthetic", "'age'"]),
    (["--scenario", "junk", "--corpus", "kaldi"], ["junk is not for CORPUS=kaldi", "says kinds"]),
])  # fmt: skip
def test_a_scenario_that_cannot_be_is_one_line_on_the_command_line(root, arguments, words):
    done = alspeech(root, "check", "--preset", "tiny", *arguments)
    (message,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and all(word in message for word in words), message


@pytest.mark.parametrize("line, words", [
    ("scenarios: [evn]", ["tiny.yaml: scenarios: unknown scenario 'evn'", "even"]),
    ("scenarios: []", ["tiny.yaml: scenarios is []", "at least 1"]),
    ("aloe: {scenario: evn}", ["tiny.yaml: aloe: scenario: unknown scenario 'evn'"]),
    ("scenario: even", ["tiny.yaml: scenario is no key"]),
    ("drawn: {}", ["tiny.yaml: drawn is no key"]),
])  # fmt: skip
def test_a_preset_s_bad_scenario_is_one_line(companion, line, words):
    with open(companion("") / "configs" / "tiny.yaml", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError) as error:
        load_settings("tiny")
    assert all(word in str(error.value) for word in words), error.value


# ---------------------------------------------------------------- a new one


def test_a_new_scenario_is_one_entry(root):
    with open(root / "configs" / "scenarios.yaml", "a") as file:
        file.write(
            "mine:\n  base: {kinds: [digits]}\n  pool: {kinds: [digits, filler], pause: 1}\n"
        )
    done = alspeech(root, "check", "--preset", "tiny", "--scenario", "mine")
    assert done.returncode == 0, done.stderr
    (path,) = (root / "data").glob("synthetic-mine-*/manifest.jsonl")
    manifest = manifests.read_manifest(path)
    kinds = manifest.groupby("split")["kind"].agg(set)
    assert kinds["base"] == kinds["test"] == {"digits"} and kinds["pool"] == {"digits", "filler"}
    assert manifest.groupby("split")["duration"].median().loc["pool"] > 1


# ---------------------------------------------------------------- recordings

AGED = Scenario(
    group="age_group", column="age", groups=(("child", (0, 15)), ("adult", (16, 120))),
    base=Draw(groups=shares({"child": 10, "adult": 90})),
    test=Draw(groups=shares(["child", "adult"])),
)  # fmt: skip


def people(children=24, adults=60, each=5):
    """Rows as readers give them: of children and adults, some of unknown age."""
    rows = []
    for number in range(children + adults + 3):
        age = "8" if number < children else "30" if number < children + adults else None
        for i in range(each):
            rows.append(
                {"utt_id": f"{number}-{i}", "speaker": f"s{number}", "age": age, "split": None}
            )
    return pd.DataFrame(rows).astype({"split": object})


def test_groups_are_dealt_so_that_each_split_has_as_many_of_them_as_it_wants():
    rows = validation.grouped(people(), AGED)
    assert rows["age_group"].value_counts().to_dict() == {"child": 120, "adult": 300}
    sizes = CorpusConfig(base=100, pool=100, validation=40, test=120)
    rows["split"], notes = validation.assign_splits(rows, sizes, AGED)
    assert rows.groupby("speaker")["split"].nunique().max() == 1 and notes == []
    counts = pd.crosstab(rows["split"], rows["age_group"])
    assert (counts["child"] / (counts["child"] + counts["adult"])).loc["test"] > 0.35
    assert (counts["child"] > 0).all()


def test_shares_of_groups_are_the_largest_set_that_keeps_them():
    deck = pd.DataFrame({"age_group": ["child"] * 7 + ["adult"] * 500})
    parts = {part["age_group"].iloc[0]: n for part, n in validation.quotas(deck, "base", 300, AGED)}
    assert parts == {"child": 7, "adult": 67}
    # of what is in its shares already, all stays
    again = pd.DataFrame({"age_group": ["child"] * 7 + ["adult"] * 67})
    kept = {part["age_group"].iloc[0]: n for part, n in validation.quotas(again, "base", 999, AGED)}
    assert kept == parts
    full = {part["age_group"].iloc[0]: n for part, n in validation.quotas(deck, "test", 10, AGED)}
    assert full == {"child": 5, "adult": 5}


def test_a_group_of_nobody_is_one_line():
    with pytest.raises(UserError, match="no utterance whose age is that of .* group child"):
        validation.grouped(people(children=0), AGED)
    with pytest.raises(UserError, match="no usable utterance of .* group adult for test"):
        validation.quotas(pd.DataFrame({"age_group": ["child"]}), "test", 10, AGED)


@pytest.mark.skipif(
    not (SHARED / "speechocean762").exists(), reason="no speechocean762 beside the code"
)
def test_children_are_rare_in_recorded_speech_and_half_of_its_test(root):
    data = str(SHARED / "speechocean762" / "train")
    words = ["--preset", "recorded", "--corpus", "kaldi", "--data", data]
    done = alspeech(root, "check", *words, "--scenario", "rare_children")
    assert done.returncode == 0, done.stderr
    (path,) = (root / "data").glob("kaldi-rare_children-*/manifest.jsonl")
    manifest = manifests.read_manifest(path)
    counts = pd.crosstab(manifest["split"], manifest["age_group"])
    share = counts["child"] / counts.sum(axis=1)
    assert share["base"] == pytest.approx(0.1, abs=0.02) and share["pool"] == pytest.approx(
        0.1, abs=0.02
    )
    assert share["test"] == pytest.approx(0.5, abs=0.02) and counts.loc["test"].sum() > 100
    assert ((manifest["age"].astype(float) <= 15) == (manifest["age_group"] == "child")).all()
    assert manifest.groupby("speaker")["split"].nunique().max() == 1


@pytest.mark.skipif(not (SHARED / "LibriSpeech").exists(), reason="no LibriSpeech beside the code")
def test_a_column_that_a_corpus_lacks_is_named(root):
    words = ["--preset", "recorded", "--corpus", "librispeech", "--data", str(SHARED)]
    done = alspeech(root, "check", *words, "--scenario", "rare_children")
    (message,) = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert all(x in message for x in ("rare_children", "'age'", "speaker, chapter, subset"))


def test_one_speaker_of_joined_digits_is_rare(digits, tmp_path):
    groups = (("rare", ("ada",)), ("others", ("bob",)))
    scenario = Scenario(
        group="who", column="speaker", groups=groups, test=Draw(groups=shares(["rare", "others"])),
        base=Draw(groups=shares({"rare": 10, "others": 90})),
    )  # fmt: skip
    sizes = CorpusConfig(base=100, pool=100, validation=20, test=100)
    fsdd.build(tmp_path / "out", sizes, str(digits), scenario)
    manifest = manifests.read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert (manifest["who"] == manifest["speaker"].map({"ada": "rare", "bob": "others"})).all()
    for split, part in manifest.groupby("split"):
        assert_shares(part["who"], scenario.draw(split).groups)
    nobody = replace(scenario, groups=(("rare", ("eve",)), groups[1]))
    with pytest.raises(
        UserError, match="nobody of the scenario's group rare: name some of ada, bob"
    ):
        fsdd.build(tmp_path / "other", sizes, str(digits), nobody)


def test_the_recorded_scenarios_declare_what_they_say():
    assert dict(RECORDED["rare_children"].base.groups) == {"child": 10, "adult": 90}
    assert dict(RECORDED["rare_speaker"].base.groups) == {"rare": 4, "others": 96}
    for own in RECORDED.values():
        assert len({share for _, share in own.draw("test").groups}) == 1


def test_the_makefile_names_a_run_after_a_named_scenario():
    text = (REPOSITORY / "Makefile").read_text()
    assert "RUN    := $(CORPUS)-$(PRESET)$(if $(SCENARIO),-$(SCENARIO))" in text
