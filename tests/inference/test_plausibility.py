"""What is to be believed: phantoms as they are, wrecked, and turned into what they should not be."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from kits_cascade import Cascade
from kits_cascade.errors import CaseError
from kits_cascade.inference.plausibility import INPUT_CHECKS, RESULT_CHECKS, check_input, refusal
from kits_cascade.inference.plausibility_certainty import coarse_fine_dice
from kits_cascade.inference.plausibility_facts import ImageFacts
from kits_cascade.inference.plausibility_finding import Check, Finding, Hit, run_checks, verdict_of
from kits_cascade.inference.plausibility_kidneys import find_unlike
from kits_cascade.inference.plausibility_shapes import KidneyFacts, ResultFacts
from kits_cascade.synthetic.phantom import make_case
from kits_cascade.volumes.volume import volume_from_array
from tests.benchmarks.odd_inputs import odd_inputs, true_inputs
from tests.benchmarks.plausibility import Case, findings_of, grave
from tests.benchmarks.wrecks import WRECKS
from tests.inference.oracle import HU, Oracle
from tests.inference.test_cascade import two_kidneys

SPACING = (4.0, 3.0, 3.0)
CERTAIN = (
    "shift up",
    "shift aside",
    "bowel",
    "one side",
    "noise blobs",
    "all tumor",
    "half",
    "fifth",
    "threefold",
    "empty",
)


def phantom(index):
    made = make_case(3, index, SPACING[1], SPACING[0])
    return Case(made.variant, volume_from_array(made.image.array, made.image.affine), made.labels.array)


@pytest.fixture(scope="module")
def case():
    return phantom(0)


def test_the_table_is_a_table():
    names = [check.name for check in (*INPUT_CHECKS, *RESULT_CHECKS)]
    assert len(set(names)) == len(names)
    assert all(check.severity in ("note", "doubt", "refuse") and ": " in check.name for check in INPUT_CHECKS)


def test_the_truth_is_plausible(case):
    assert grave(findings_of(case, case.labels)) == []


@pytest.mark.parametrize("index", [1, 3, 4])  # a single kidney, a horseshoe, a small tumour
def test_rare_people_are_plausible_too(index):
    rare = phantom(index)
    assert grave(findings_of(rare, rare.labels)) == []


@pytest.mark.parametrize("kind", CERTAIN)
def test_wrecks_are_found(case, kind):
    assert grave(findings_of(case, WRECKS[kind](case)))


def test_kidneys_in_the_lung_are_doubted(case):
    around = ndimage.binary_dilation(case.labels > 0, iterations=4) & (case.labels == 0)
    image = np.where(around, -800, case.image).astype(np.int16)
    lost = replace(case, volume=case.volume.with_array(image))
    assert "kidneys: air" in grave(findings_of(lost, case.labels))


def test_odd_scans_are_named_and_true_ones_never_refused(case):
    for name, volume, check in odd_inputs(case.volume):
        found = check_input(ImageFacts.of(volume))
        assert check in [finding.check for finding in found], name
        assert bool(refusal(found)) == (check.startswith("values") and check != "values: drift"), name
    for name, image in true_inputs(case.image, case.spacing):
        found = check_input(ImageFacts.of(volume_from_array(image, case.volume.affine)))
        assert not refusal(found), name


def test_contrast_medium_in_the_bowel_is_no_spine(case):
    facts = ImageFacts.of(case.volume)
    bowel = case.image.copy()
    z, y, x = (n // 2 for n in bowel.shape)
    bowel[z - 12 : z + 12, y + 15 : y + 35, x - 20 : x + 20] = 600
    moved = ImageFacts.of(case.volume.with_array(bowel))
    assert np.abs(np.subtract(facts.spine, moved.spine)).max() < 15


def test_a_spleen_beside_a_kidney_that_the_scan_cuts_is_doubted(case):
    def kidney(z, y, x, hu, cut):
        place = {"centre": (int(z), int(y), int(x)), "centre_mm": (z, y, x), "hu": hu, "cut": cut}
        return KidneyFacts(volume_ml=180.0, tissue_ml=180.0, hu_spread=15.0, fat=0.0, bone=0.0, edge=1.0, air=0.0,
                           flat=0.2, flat_at=(0, 0, 0), outside=0.0, **place)  # fmt: skip

    image = ImageFacts.of(case.volume)
    y, x = image.spine
    right, left = kidney(100.0, y + 15, x + 70, 180.0, False), kidney(110.0, y + 20, x - 65, 165.0, True)
    spleen = kidney(150.0, y + 35, x - 100, 115.0, True)
    assert not list(find_unlike(ResultFacts(image, [right, left], [], [], {})))
    assert list(find_unlike(ResultFacts(image, [right, spleen], [], [], {})))


def test_one_word_for_a_case():
    def some(*severities):
        return [Finding(f"check {n}", severity, "") for n, severity in enumerate(severities)]

    assert verdict_of([]) == verdict_of(some("note", "note")) == "plausible"
    assert verdict_of(some("note", "doubt")) == verdict_of(some("doubt", "doubt")) == "doubtful"
    assert verdict_of(some("refuse")) == verdict_of(some("doubt", "doubt", "doubt")) == "implausible"
    assert verdict_of([Finding("the same", "doubt", "")] * 5) == "doubtful"


def test_a_finding_says_what_and_where():
    check = Check("a: b", "doubt", "{n} of them", lambda facts: [Hit({"n": facts}, (7, 8, 9), "cyst 2")])
    other = Check("c: d", "refuse", "no", lambda facts: [Hit()])
    worst, found = run_checks((check, other), 3)
    assert worst.check == "c: d" and worst.look == ""
    assert (found.text, found.look) == ("3 of them", "cyst 2, slice 7 from the feet")
    assert found.to_json()["where"] == [7, 8, 9]


def test_what_is_no_ct_is_refused_before_the_networks():
    image = (HU[two_kidneys()].astype(np.int32) + 1024).astype(np.int16)
    image[:, :6] = 24  # air
    oracle = Oracle()
    with pytest.raises(CaseError, match=r"rescale intercept.*--accept-values"):
        Cascade(predictors=oracle)(image, spacing=SPACING)
    assert oracle.calls == []
    accepted = Cascade(predictors=oracle, accept_values=True)(image, spacing=SPACING)
    assert accepted.verdict == "implausible"
    assert [call[0] for call in oracle.calls] == ["coarse"]


def test_a_prediction_has_its_verdict_and_its_reasons():
    image = HU[two_kidneys()]
    prediction = Cascade(predictors=Oracle())(image, spacing=(4.0, 2.0, 2.0))
    checks = {finding.check for finding in prediction.findings}
    # The oracle's kidneys are blocks of one value in a world of fat; its tumour is as dense as contrast medium.
    assert "kidneys: none" not in checks and "values: no CT" not in checks
    assert prediction.verdict == verdict_of(prediction.findings)
    nothing = Cascade(predictors=Oracle())(np.full_like(image, -1000), spacing=(4.0, 2.0, 2.0))
    assert nothing.verdict == "implausible"


def test_what_is_wrong_with_the_scan_comes_first(case):
    turned = replace(case, volume=case.volume.with_array(np.ascontiguousarray(case.image[:, :, ::-1])))
    checks = [finding.check for finding in findings_of(turned, np.zeros_like(case.labels))]
    assert checks[:2] == ["view: mirrored", "kidneys: none"]


def test_every_finding_about_a_part_says_where(case):
    whole = {"values", "kidneys: none", "view: head", "view: legs", "view: short", "view: tilted", "view: phantom"}
    whole |= {"view: thick slices"}
    for kind in ("noise_blobs", "confetti", "all_tumor", "fifth", "bowel", "one_side", "fat_as_cyst"):
        for finding in findings_of(case, WRECKS[kind.replace("_", " ")](case)):
            assert finding.where or {finding.check, finding.check.split(":")[0]} & whole, (kind, finding)


def test_coarse_and_fine_are_compared_on_the_coarse_grid():
    labels = np.zeros((8, 12, 16), np.uint8)
    labels[2:6, 4:8, 4:12] = 3
    coarse = labels[1::2, 1::2, 1::2] > 0
    assert coarse_fine_dice(coarse, labels) == 1.0
    assert coarse_fine_dice(np.zeros_like(coarse), labels) == 0.0
    assert coarse_fine_dice(np.zeros_like(coarse), np.zeros_like(labels)) == 1.0
