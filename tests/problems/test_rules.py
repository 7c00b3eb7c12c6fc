"""Data sets made by rule follow it, and nothing else in them says anything."""

import pytest
import torch

import workbench as wb


def test_sparse_parity_is_the_product_of_its_first_bits():
    data = wb.make("sparse-parity", bits=11, relevant=4, samples=3000).load()
    x, y = torch.cat([data.x, data.x_test]), torch.cat([data.y, data.y_test])
    assert x.shape == (3000, 11)
    bits = x.sign()
    assert torch.equal(y, (bits[:, :4].prod(1) > 0).long())
    # Bits are fair and independent: neither one of them nor any other four say anything (five sigma of 3,000 coins).
    assert bits.mean(0).abs().max() < 5 / 3000**0.5
    labels = 2.0 * y - 1
    assert (bits * labels[:, None]).mean(0).abs().max() < 5 / 3000**0.5
    assert abs(float((bits[:, 1:5].prod(1) * labels).mean())) < 5 / 3000**0.5
    assert data.classes == ("-1", "1")
    assert data.recipe == "wb.make('sparse-parity', bits=11, relevant=4, samples=3000)"
    assert torch.equal(wb.make("sparse-parity").load().x, wb.make("sparse-parity").load().x)
    with pytest.raises(ValueError, match="at most 3 relevant bits"):
        wb.make("sparse-parity", bits=3, relevant=4).load()


def test_modular_addition_holds_every_pair_once():
    data = wb.make("modular-addition", p=7).load()
    assert data.x_test.shape == (round(0.3 * 49), 14)
    x, y = torch.cat([data.x, data.x_test]), torch.cat([data.y, data.y_test])
    a, b = x[:, :7].argmax(1), x[:, 7:].argmax(1)
    assert sorted((7 * a + b).tolist()) == list(range(49))
    assert torch.equal(y, (a + b) % 7)
    assert data.outputs == 7


@pytest.mark.slow
def test_modular_addition_is_learnt_by_heart_first_and_grokked_later():
    """All training pairs right while held-out ones are no better than chance; with weight decay those follow later."""
    data = wb.make("modular-addition", holdout=0.25).load()
    routine = wb.training(wb.make("mlp", width=128), "cross_entropy", data, "adamw", batch_size=len(data.x))
    hyper = {"lr": 3e-3, "weight_decay": 1.0}
    record = wb.rollout(routine, 1200, seed=[0, 1], hyper=hyper, probes=["train", "heldout"], every=50)
    early = record.sel(step=250)
    assert (early["train_accuracy"] == 1).all()
    assert (early["heldout_accuracy"] < 0.15).all()
    assert (record["heldout_accuracy"].isel(step=-1) > 0.4).all()
