"""topa merge: a plain LLM and a front, or one line that says why not."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from topa.cli import app
from topa.data.collate import collate_for_generation
from topa.model.export import load_plain
from topa.model.loading import load_model


@torch.no_grad()
def test_the_merged_llm_says_what_the_checkpoint_says(checkpoint, tmp_path):
    out = tmp_path / "merged"
    result = CliRunner().invoke(
        app, ["merge", str(checkpoint), str(out), "--dtype", "float32", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["front"] == str(out / "front" / "front.safetensors")
    model, builder = load_model(checkpoint, device="cpu")
    prompt = builder.open("What is it?")
    shown = torch.nn.functional.normalize(torch.randn(3, model.config.feature_dim), dim=-1)
    inputs = collate_for_generation([prompt], [shown], 10, model.config.slots_per_frame)
    wanted = model(**inputs).logits[0][inputs["attention_mask"][0].bool()]
    llm, front = load_plain(out)
    [embeds] = front([prompt], [shown])
    found = llm(inputs_embeds=embeds[None]).logits[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert type(AutoModelForCausalLM.from_pretrained(out)) is type(llm)


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path):
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "none"), str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "no config.json" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
