"""Recognisers from elsewhere: exact gradients of any module, every score, and what is refused."""

import importlib
import json
import math
import sys
from dataclasses import replace

import pandas as pd
import pytest
import soundfile
import torch
import torchaudio
from conftest import alspeech
from test_yours import PRESET, answer, query, record
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from alspeech import experiment
from alspeech.acquisition import ACQUISITIONS, IN_TURN, ORACLES, egl
from alspeech.ctc import ctc_losses
from alspeech.decoding import n_best
from alspeech.embeddings import embed
from alspeech.field import elsewhere, pretrained, recognisers, yours
from alspeech.field.pretrained import LETTERS, ConformerCTC, Wave
from alspeech.field.recognisers import Recogniser, read_weights
from alspeech.gradients import Tape, expected_gradient_length
from alspeech.querying import rank, score_options
from alspeech.speech import corpus
from alspeech.speech.features import Batch
from alspeech.workshop import config, steps
from alspeech.workshop.config import ModelConfig, load_settings
from alspeech.workshop.errors import UserError

CONVOLUTIONS = [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2


def wave(mode="group_norm", layer_norm_first=False, outputs=29):
    """wav2vec 2.0's parts in small; HuBERT's are the same, the large ones norm elsewhere."""
    return torchaudio.models.wav2vec2_model(
        mode, CONVOLUTIONS, layer_norm_first, 32, 0.0, 9, 4, 2, 4, 0.0, 64, 0.0, 0.0,
        layer_norm_first, 0.0, outputs,
    )  # fmt: skip


def wavlm(aux_num_out=29):
    return torchaudio.models.wavlm_model(
        "group_norm", CONVOLUTIONS, False, 32, 0.0, 8, 4, 2, 4, 32, 80, 0.0, 64, 0.0, 0.0, False,
        0.0, aux_num_out,
    )  # fmt: skip


KINDS = {
    "wav2vec 2.0": lambda: (Wave(wave(), False), "samples"),
    "HuBERT, large": lambda: (Wave(wave("layer_norm", True), True), "samples"),
    "WavLM": lambda: (Wave(wavlm(), False), "samples"),
    "Conformer": lambda: (ConformerCTC(40, 29, 32, 4, 64, 2, 7), "log-mel"),
}


def recogniser(kind="wav2vec 2.0") -> Recogniser:
    torch.manual_seed(0)
    module, features = KINDS[kind]()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return Recogniser(module, LETTERS, features, ModelConfig(), kind)


def batch_for(model: Recogniser, size: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    shape = (size, 8000, 1) if model.features == "samples" else (size, 64, 40)
    features = 0.1 * torch.randn(shape, generator=generator)
    return Batch(tuple(f"u{i}" for i in range(size)), features)


def plain(model, features, hypotheses, b: int) -> float:
    """Equation 4 as it stands, of whatever takes part in it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    log_probs, total = model(features).log_softmax(-1), 0.0
    for k in hypotheses.log_p[b].isfinite().nonzero()[:, 0].tolist():
        loss = ctc_losses(log_probs, [hypotheses.labeling(b, k)]).sum()
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        norm = sum(x.square().sum().item() for x in found if x is not None)
        total += math.exp(hypotheses.log_p[b, k].item()) * norm
    return total


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", KINDS)
def test_egl_equals_k_passes_of_autograd_in_single_precision(kind):
    model = recogniser(kind)
    batch = batch_for(model)
    tape = Tape(model, batch.features)
    hypotheses = n_best(tape.logits.log_softmax(-1), 8)
    exact = expected_gradient_length(tape, hypotheses, "exact")
    truth = [plain(model, batch.features[b : b + 1], hypotheses, b) for b in range(3)]
    assert exact.tolist() == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_score_runs_and_does_not_depend_on_batch_mates(kind):
    model = recogniser(kind)
    batch = batch_for(model)
    others = ("loss_prediction", *ORACLES)  # they need a head of their own, or transcripts
    for name in ACQUISITIONS.keys() - set(others):
        taken = score_options(load_settings("smoke"), name, 0)
        options = {x: y for x, y in {"labelings": 8, "beam": 8, "directions": 2}.items()
                   if x in taken}  # fmt: skip
        together = ACQUISITIONS[name](model, batch, **options)
        assert together.shape == (3,) and together.isfinite().all(), name
        for b in range(3):
            one = Batch(batch.utt_ids[b : b + 1], batch.features[b : b + 1])
            alone = ACQUISITIONS[name](model, one, **options)
            assert alone.item() == pytest.approx(together[b].item(), rel=1e-5), name
    found = embed(model, batch, labelings=8, directions=2, numbers=16)
    assert found["directions"].shape == (3, 2, 16) and found["embeddings"].shape == (3, 32)
    assert IN_TURN  # they ran, too, as keys


class Whole(nn.Module):
    """As torchaudio's pipelines do it: a batch is normalised as a whole."""

    def __init__(self):
        super().__init__()
        self.model = wave()

    def forward(self, samples):
        return self.model(functional.layer_norm(samples, samples.shape))


def test_neither_does_a_module_whose_utterances_meet():
    torch.manual_seed(0)
    model = Recogniser(Whole(), LETTERS, "samples", ModelConfig())
    batch = batch_for(model)
    loud = Batch(batch.utt_ids, batch.features * torch.tensor([1.0, 30, 1])[:, None, None])
    quiet, other = (model(x.features)[0] for x in (batch, loud))
    assert torch.equal(quiet, other)


class Odd(nn.Module):
    """What a rule could be wrong about, one part at a time."""

    def __init__(self, part: str):
        super().__init__()
        self.part = part
        self.first, self.middle, self.more = nn.Linear(12, 10), nn.Linear(10, 10), nn.Linear(10, 10)
        self.recurrent = nn.GRU(10, 5, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)
        self.conv = parametrizations.weight_norm(nn.Conv1d(10, 10, 3, padding=1, groups=2))
        self.norm, self.point = nn.GroupNorm(2, 10), nn.Conv1d(10, 10, 1)
        self.grid = nn.Conv2d(1, 1, 3, padding=1)
        self.table, self.scale = nn.Embedding(7, 10), nn.Parameter(torch.ones(10))
        self.unused, self.head = nn.Linear(3, 3), nn.Linear(10, 5)
        if part == "shared":
            self.more.weight = self.middle.weight
        if part == "frozen":
            self.middle.requires_grad_(False)
            self.first.bias.requires_grad_(False)
        if part == "normed matrix":
            self.middle = parametrizations.weight_norm(self.middle)

    def forward(self, x):
        x = self.first(x)
        if self.part == "in place":
            x.mul_(1.5).add_(0.3)
        x = self.middle(torch.tanh(x))
        match self.part:
            case "twice":
                x = self.middle(torch.tanh(x))
            case "shared":
                x = self.more(torch.tanh(x))
            case "behind its back":
                x = x + torch.tanh(x) @ self.middle.weight
            case "by name":
                x = self.more(input=torch.tanh(x))
            case "time first":
                x = self.more(x.transpose(0, 1)).transpose(0, 1)
            case "recurrent":
                x = self.recurrent(x)[0]
            case "attention":
                x = x + self.attention(x, x, x, need_weights=False)[0]
            case "convolutions":
                x = self.point(self.norm(self.conv(x.mT))).mT + self.grid(x[:, None])[:, 0]
            case "embedding":
                x = x + self.table(torch.arange(x.shape[1]) % 7) * self.scale
            case "scores":
                return self.head(x).log_softmax(-1), None
        return self.head(x)


PARTS = {  # and which kinds of layers a line says to have no rule
    **dict.fromkeys(
        ("plain", "in place", "by name", "time first", "scores", "convolutions", "embedding"), ""
    ),
    **dict.fromkeys(("twice", "shared", "behind its back", "frozen"), "Linear"),
    "recurrent": "GRU",
    "attention": "MultiheadAttention, NonDynamicallyQuantizableLinear",
    "normed matrix": "ParametrizedLinear",
}


@pytest.mark.parametrize("part", PARTS)
def test_gradients_of_whatever_a_module_does_are_exact(part, capsys):
    torch.manual_seed(0)
    config = ModelConfig(bins=12)
    model = Recogniser(Odd(part), ["a", "b", "", "c", "d"], "log-mel", config, "odd").double()
    features = torch.randn(3, 9, 12, dtype=torch.float64)
    tape = Tape(model, features)
    assert torch.allclose(tape.logits, model(features))
    directions = torch.randn(3, 2, 9, 5, dtype=torch.float64)
    directions -= directions.mean(dim=-1, keepdim=True)  # as those of a loss are
    for who in (slice(None), torch.tensor([2, 0])):
        ours, features_of = tape.squared_norms(directions[who], who), features[who]
        wanted = [p for p in model.parameters() if p.requires_grad]
        for b in range(len(ours)):
            for r in range(2):
                loss = (model(features_of[b : b + 1])[0] * directions[who][b, r]).sum()
                found = torch.autograd.grad(loss, wanted, allow_unused=True)
                truth = sum(x.square().sum() for x in found if x is not None)
                assert ours[b, r].item() == pytest.approx(truth.item(), rel=1e-9)
    told = capsys.readouterr().err.splitlines()
    kinds = PARTS[part]
    assert len(told) == bool(kinds)
    assert not kinds or f"({kinds}; the first is " in told[0] and "exact and slower" in told[0]


# ---------------------------------------------------------------- alphabets, features, weights


def test_the_blank_comes_first_and_letters_are_as_transcripts_have_them():
    torch.manual_seed(0)
    odd, symbols = Odd("plain"), ["A", "|", "", "▁the", "<unk>"]
    features = torch.randn(2, 9, 12)
    before = odd.eval()(features).detach()
    model = Recogniser(odd, symbols, "log-mel", ModelConfig(bins=12))
    assert torch.allclose(model(features), before[..., [2, 0, 1, 3, 4]], atol=1e-6)
    assert model.alphabet.decode([1, 2, 2, 1, 3, 4, 1]) == "a a thea"
    assert model.alphabet.letters == set("a the") and len(model.alphabet) == 5


def test_a_head_that_is_a_convolution_is_a_last_layer_too():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv1d(12, 6, 3, padding=1), nn.Conv1d(6, 5, 1)

        def forward(self, x):
            return self.head(torch.tanh(self.body(x.mT))).mT.log_softmax(-1)

    torch.manual_seed(0)
    model = Recogniser(Conv(), ["a", "b", "", "c", "d"], "log-mel", ModelConfig(bins=12))
    batch = Batch(("x", "y"), torch.randn(2, 9, 12))
    hypotheses = n_best(model(batch.features).log_softmax(-1).detach(), 6)
    truth = [plain(model, batch.features[b : b + 1], hypotheses, b) for b in range(2)]
    assert egl(model, batch, 6, "exact").tolist() == pytest.approx(truth, rel=1e-4)


def test_samples_are_those_of_the_recording_and_log_mels_those_of_the_preset(tmp_path):
    record(tmp_path / "mine", number=4)
    paths = [str(tmp_path / "mine" / name) for name in ("a000.wav", "a001.wav")]
    rows = pd.DataFrame({"utt_id": ["whole", "part"], "path": paths, "offset": [0.0, 0.1],
                         "duration": [0.5, 0.4]})  # fmt: skip
    raw = recognisers.Heard(rows, "samples", ModelConfig())
    audio = soundfile.read(rows["path"][1], dtype="float32")[0]
    assert raw["part"].shape == (6400, 1)
    assert torch.equal(raw["part"][:, 0], torch.from_numpy(audio[1600:8000]))
    assert recognisers.Heard(rows, "samples", ModelConfig(sample_rate=8000))["part"].shape == (
        3200,
        1,
    )
    mels = recognisers.Heard(rows, "log-mel", ModelConfig(bins=20, round_frames=8))
    assert mels["whole"].shape == (56, 20) and mels.frames == {"whole": 56, "part": 40}
    assert [len(x) for x in mels.batches(rows, 8)] == [1, 1]


@pytest.fixture
def weights(tmp_path):
    """Files of tiny fine-tuned models."""
    torch.manual_seed(0)
    torch.save(wave(outputs=32).state_dict(), tmp_path / "wave.pt")
    torch.save(ConformerCTC(40, 3, 32, 4, 64, 2, 7).state_dict(), tmp_path / "conformer.pt")
    (tmp_path / "conformer.txt").write_text("\na\nb\n")
    return tmp_path


def test_shipped_recognisers_are_as_large_as_their_weights(weights):
    make = pretrained.of_torchaudio(lambda aux_num_out: wave(outputs=aux_num_out), normalise=True)
    module, symbols, features = make(weights / "wave.pt")
    assert (len(symbols), symbols[:2], symbols[4], features) == (32, ["", "<pad>"], "|", "samples")
    model = Recogniser(module, symbols, features, ModelConfig())
    noise = torch.randn(1, 4000, 1)
    assert torch.allclose(model(noise), model(3 * noise + 1), atol=1e-4)  # normalised
    module, symbols, features = pretrained.conformer(weights / "conformer.pt")
    assert symbols == ["", "a", "b"] and features == "log-mel" and module.heads == 4
    assert len(module.conformer.conformer_layers) == 2
    for name in ("wav2vec2_base", "hubert_base", "wavlm_base", "wav2vec2_large_lv60k"):
        with pytest.raises(UserError, match="fine-tuned"):
            getattr(pretrained, name)()


class Boom:
    def __reduce__(self):
        return exec, ("raise SystemExit('the code in the pickle ran')",)


@pytest.mark.parametrize("content, told", [
    (lambda path: torch.save({"aux.weight": Boom()}, path), "refused, since it holds more than"),
    (lambda path: torch.save([1, 2], path), "no state dict"),
    (lambda path: path.write_bytes(b""), "cannot be read"),
    (lambda path: path.write_text("weights"), "refused|cannot be read"),
    (lambda path: torch.save({"a": torch.ones(1)}, path), "no aux.weight"),
    (lambda path: torch.save({"aux.weight": torch.ones(32, 8)}, path), "not this recogniser's"),
    (lambda path: torch.save({"aux.weight": torch.ones(30, 32)}, path), "not this recogniser's"),
])  # fmt: skip
def test_weights_that_cannot_be_used_are_one_line(tmp_path, content, told):
    path = tmp_path / "w.pt"
    content(path)
    make = pretrained.of_torchaudio(lambda aux_num_out: wave(outputs=aux_num_out))
    with pytest.raises(UserError, match=told) as error:
        make(path)
    assert "\n" not in str(error.value) and "w.pt" in str(error.value)


def test_outputs_without_known_symbols_ask_for_them(weights):
    torch.save(wave(outputs=30).state_dict(), weights / "other.pt")
    make = pretrained.of_torchaudio(lambda aux_num_out: wave(outputs=aux_num_out))
    with pytest.raises(UserError, match="30 outputs: write their symbols into .*other.txt"):
        make(weights / "other.pt")
    (weights / "other.txt").write_text("\n" + "\n".join("abcdefghijklmnopqrstuvwxyz'|-") + "\n")
    assert len(make(weights / "other.pt")[1]) == 30
    assert read_weights(weights / "other.pt").keys() == wave(outputs=30).state_dict().keys()


# ---------------------------------------------------------------- make query and make learn

TINY = '''
import torch, torchaudio
from parts import LETTERS

def build(weights=None):
    conv = [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2
    model = torchaudio.models.wav2vec2_model("group_norm", conv, False, 16, 0.0, 9, 4, 2, 2, 0.0,
                                             32, 0.0, 0.0, False, 0.0, len(LETTERS))
    if weights:
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model, LETTERS, "samples"
'''  # fmt: skip


@pytest.fixture
def home(root, monkeypatch):
    """A companion with recordings, most without transcripts, and a recogniser beside configs/."""
    (root / "theirs.py").write_text(TINY)
    (root / "parts.py").write_text('LETTERS = ["", *"|etaonihsrdlumwcfgypbvk\'xjqz"]\n')
    (root / "configs" / "voices.yaml").write_text(PRESET + "recogniser: theirs:build\n")
    return root


def said(root, command, *words):
    done = alspeech(root, command, "--preset", "voices", "--corpus", "jsonl", "--data",
                    str(root / "mine"), *words, ALSPEECH_JOBS="1")  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_recogniser_from_elsewhere_is_asked_and_nothing_is_trained(home):
    texts = record(home / "mine", number=24, labelled=3)
    first, told = said(home, "check").stdout.splitlines()
    assert "3 utterances" in first and "21 utterances" in first and "without a transcript" in first
    assert "theirs:build: 0." in told and "samples of 16000 Hz, writes 'abc" in told
    rows, _ = query(home, "--budget", "4")
    assert len(rows) == 4 and all(row["why"] and isinstance(row["guess"], str) for row in rows)
    assert not list(home.glob("build/cells/base-*"))
    done = said(home, "learn", "--transcripts", answer(home, rows, texts))
    assert done.returncode == 0, done.stderr
    assert "4 new transcripts" in done.stdout and "new weights" in done.stdout
    files = [home / f"build/jsonl-voices/{x}.jsonl" for x in ("train", "validation", "test")]
    listed = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert {row["utt_id"] for row in rows} <= {row["utt_id"] for row in listed}
    assert len(listed) == 7 and all(row["text"] == texts[row["utt_id"]] for row in listed)
    again, _ = query(home, "--budget", "4", "--method", "egl")
    assert not {row["utt_id"] for row in again} & {row["utt_id"] for row in rows}
    assert len(list(home.glob("build/cells/recogniser-*"))) == 1  # every process means the same


def test_before_anything_is_transcribed_a_selection_is_asked(home):
    record(home / "mine", number=12, labelled=0)
    rows, _ = query(home, "--budget", "4", "--method", "fisher_ratio_pool")
    assert len(rows) == 4


@pytest.fixture
def own_modules(home, monkeypatch):
    """Its modules are imported here, by ``anew()`` as in a process of its own."""
    for module in (config, corpus, elsewhere, recognisers, steps):
        monkeypatch.setattr(module, "ROOT", home, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def anew():
        recognisers._load.cache_clear()
        importlib.invalidate_caches()
        for name in ("theirs", "parts"):
            sys.modules.pop(name, None)

    anew()
    yield home, anew
    anew()


def test_source_alphabet_and_weights_are_in_the_key_of_scores(own_modules):
    home, anew = own_modules
    record(home / "mine", number=8, labelled=0)
    known = []

    def key():
        anew()
        settings = load_settings("voices", "jsonl", str(home / "mine"))
        settings = yours.mine(settings, budget="2", method="entropy")
        asked = yours.recogniser(settings)
        known.append(elsewhere.pool_scores(settings, "entropy", 0, *asked, 2).key)
        return len(set(known))

    assert key() == 1 and key() == 1
    (home / "theirs.py").write_text(TINY + "# edited\n")
    assert key() == 2
    letters = (home / "parts.py").read_text()  # what it imports is its source, too
    (home / "parts.py").write_text(letters.replace("jqz", "jzq"))
    assert key() == 3
    model = torchaudio.models.wav2vec2_model(
        "group_norm", CONVOLUTIONS, False, 16, 0.0, 9, 4, 2, 2, 0.0, 32, 0.0, 0.0, False, 0.0, 29
    )
    preset = home / "configs" / "voices.yaml"
    preset.write_text(preset.read_text() + "weights: w.pt\n")
    for number in (4, 5):
        nn.init.constant_(model.aux.bias, number)
        torch.save(model.state_dict(), home / "w.pt")
        assert key() == number


BAD = [  # what stands in theirs.py, what the preset says beside it, what is told
    ("import nothing_of_that_name\n", "", "cannot be imported: .*theirs.py:1: ModuleNotFoundError"),
    ("def build(:\n", "", "cannot be imported: .*theirs.py:1: SyntaxError"),
    ("import sys\nsys.exit(3)\n", "", "cannot be imported: .*theirs.py:2: SystemExit"),
    ("build = 3\n", "", "there is no function build in .*theirs.py"),
    ("def build():\n    return 1 / 0\n", "", "theirs.py:2: ZeroDivisionError: division by zero"),
    ("def build():\n    return 3\n", "", "returns int: return a torch.nn.Module"),
    (TINY.replace('"samples"', '"mp3"'), "", r"returns \(Wav2Vec2Model, list, str\): return a"),
    (TINY.replace("model, LETTERS", "model, LETTERS[1:]"), "", "28 symbols 0 are"),
    (TINY.replace("model, LETTERS", "model, LETTERS[:-1]"), "",
     r"returns \[1, 49, 29\] for one utterance, and its alphabet has 28 symbols"),
    (TINY.replace("return model,", "return torch.nn.Flatten(),"), "", r"returns \[1, 16000\] for"),
    (TINY.replace("return model,", "model.aux.bias.data[3] = torch.nan; return model,"), "",
     "its logits are NaN or infinite"),
    (TINY.replace("return model,", "model.aux = torch.nn.Upsample(29); return model,"), "",
     "its logits are not what a last nn.Linear"),
    (TINY.replace('"samples"', '"log-mel"'), "", r"theirs:build fails on \[1, 112, 40\]"),
    (TINY, "weights: none.pt\n", "weights: no file .*none.pt"),
    (TINY, "weights: evil.pt\n", "evil.pt: refused, since it holds more"),
    (TINY, "recogniser: theirs\n", "recogniser is theirs: write package.module:function"),
    (TINY, "recogniser: theirs:build()\n", "recogniser is theirs:build"),
    (TINY, "recogniser: nowhere:build\n", "nowhere:build: it cannot be imported: ModuleNotFound"),
    (TINY, "recogniser: ''\nweights: w.pt\n", "weights are read by a recogniser"),
    (TINY, "recogniser: alspeech.field.pretrained:wavlm_base\n", "wavlm_base: needs weights"),
    (TINY, "recogniser: alspeech.field.pretrained:wavlm_base\nweights: evil.pt\n",
     "evil.pt: refused"),
]  # fmt: skip


@pytest.mark.parametrize("source, preset, told", BAD)
def test_what_cannot_be_asked_is_one_line(own_modules, source, preset, told):
    home, _ = own_modules
    (home / "theirs.py").write_text(source)
    torch.save({"aux.weight": Boom()}, home / "evil.pt")
    own = preset if "recogniser:" in preset else f"recogniser: theirs:build\n{preset}"
    (home / "configs" / "bad.yaml").write_text(own)
    with pytest.raises(UserError, match=told) as error:
        recognisers.load(load_settings("bad"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_an_alphabet_that_lacks_a_letter_is_one_line_and_nothing_is_half_written(home):
    record(home / "mine", number=8, labelled=3)
    letters = (home / "parts.py").read_text()
    (home / "parts.py").write_text(letters.replace("gypb", "g*pb"))
    for words in (("query", "--budget", "2"), ("learn",)):
        done = said(home, *words)
        assert done.returncode == 2
        (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
        assert "its alphabet lacks y, which 'yes' of a000 has" in line
    assert not list(home.glob("build/jsonl-voices/*.jsonl"))


@pytest.mark.parametrize("command", ["run", "audit", "power"])
def test_what_trains_says_that_it_is_not_trained_here(home, command):
    done = said(home, command)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "voices.yaml: recogniser: theirs:build is not trained here" in done.stderr


# ---------------------------------------------------------------- a shortlist


def test_what_is_not_on_the_shortlist_stays_behind_it_in_its_order():
    first = pd.Series({"a": 9.0, "b": 8.0, "c": 7.0, "d": 6.0, "e": 0.0})
    full = pd.Series({"a": 2.0, "b": 4.0}, name="egl")
    assert list(rank(elsewhere.behind(first, full))) == [1, 0, 2, 3, 4]
    small = pd.Series({"a": 90.0, "b": 80.0}, name="egl")
    assert elsewhere.behind(first, small)["c"] == 7.0
    silent = pd.Series(0.0, first.index)
    assert list(elsewhere.behind(silent, full)) == [2, 4, 0, 0, 0]
    # where the least of the full ones is nothing, the others keep their order, and none ties
    nothing = pd.Series({"b": 4.0, "e": 0.0}, name="egl")
    found = elsewhere.behind(first, nothing)
    assert list(found.sort_values(ascending=False).index) == ["b", "e", "a", "c", "d"]
    assert found.is_unique


def test_a_recogniser_from_elsewhere_scores_a_pool_in_shards_as_in_one(own_modules):
    home, _ = own_modules
    record(home / "mine", number=14, labelled=0)
    settings = load_settings("voices", "jsonl", str(home / "mine"))
    settings = yours.mine(settings, budget="2", method="egl_renormalised")
    asked = yours.recogniser(settings)
    whole, sharded = (
        elsewhere.pool_scores(replace(settings, shards=n), "entropy", 0, *asked, 2).folder()
        for n in (1, 3)
    )
    assert whole != sharded
    assert (whole / "scores.csv").read_bytes() == (sharded / "scores.csv").read_bytes()


def test_of_a_large_recogniser_full_gradients_are_a_shortlists_only(own_modules, monkeypatch):
    home, _ = own_modules
    record(home / "mine", number=14, labelled=0)
    settings = load_settings("voices", "jsonl", str(home / "mine"))
    settings = yours.mine(settings, budget="2", method="egl_renormalised")
    asked = yours.recogniser(settings)
    scores = lambda **more: experiment.read_scores(  # noqa: E731
        elsewhere.pool_scores(replace(settings, **more), "egl_renormalised", 0, *asked, 2).folder()
    )
    full, rough = scores(), scores(egl_method="last_layer")
    assert not list(home.glob("build/cells/shortlist-*"))
    monkeypatch.setattr(elsewhere, "LARGE", 10)
    short = scores()
    assert len(list(home.glob("build/cells/shortlist-*"))) == 1
    on_it = rank(rough).sort_values().index[:6]  # three times what is paid for
    assert short[on_it].tolist() == pytest.approx(full[on_it].tolist(), rel=1e-5)
    assert set(rank(short).sort_values().index[:6]) == set(on_it)
    rest = short.drop(on_it).sort_values(ascending=False).index
    assert list(rest) == list(rough.drop(on_it).sort_values(ascending=False).index)
    unlimited = scores(query=replace(settings.query, shortlist=0.0))
    assert unlimited.tolist() == full.tolist()
