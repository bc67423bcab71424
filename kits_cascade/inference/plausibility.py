"""Whether a scan and its result are to be believed: one table of checks, and one word for a case.

A new check is a row here; its function lies in the file of its subject, with its limits and where they come from.
"""

from __future__ import annotations

from typing import Final

from kits_cascade.inference import plausibility_certainty as certainty
from kits_cascade.inference import plausibility_kidneys as kidneys
from kits_cascade.inference import plausibility_lesions as lesions
from kits_cascade.inference import plausibility_values as values
from kits_cascade.inference import plausibility_view as view
from kits_cascade.inference.measure import LesionRow
from kits_cascade.inference.pipeline import CascadeResult
from kits_cascade.inference.plausibility_facts import ImageFacts
from kits_cascade.inference.plausibility_finding import Check, Finding, run_checks
from kits_cascade.inference.plausibility_shapes import ResultFacts
from kits_cascade.volumes.volume import Array

__all__ = ["INPUT_CHECKS", "RESULT_CHECKS", "Finding", "check_input", "check_labels", "check_result", "refusal"]

_ALL_THE_SAME: Final = "--accept-values predicts all the same"

# Of the scan, before the networks: "refuse" ends the case there.
INPUT_CHECKS: Final[tuple[Check[ImageFacts], ...]] = (
    Check("values: nothing", "refuse", "the scan is empty: values {low:g} to {high:g}; usual are air at -1000 and "
          "tissue at -100 to 300 HU", values.find_kind("nothing")),
    Check("values: noise", "refuse", "neighbouring voxels have nothing to do with each other: this is noise and no "
          "image; was the file read with the right type and shape?", values.find_kind("noise")),
    Check("values: scaled", "refuse", "values of {low:.4g} to {high:.4g} are no Hounsfield units (usual: -1024 to "
          "3071); the file seems to be multiplied or normalized: write it again in HU", values.find_kind("scaled")),
    Check("values: 8 bit", "refuse", "values of {low:g} to {high:g} are grey levels of a window, no Hounsfield units "
          "(usual: -1024 to 3071); export the series itself and not its pictures", values.find_kind("8 bit")),
    Check("values: offset missing", "refuse", "values of {low:g} to {high:g} look like a CT of which the rescale "
          "intercept is missing (usually -1024): subtract it, or convert the DICOM series anew",
          values.find_kind("offset")),
    Check("values: inverted", "refuse", "dark and bright are exchanged (air is bright): negate the values",
          values.find_kind("inverted")),
    Check("values: no CT", "refuse", "values of {low:g} to {high:g} with neither air nor fat below 0: this looks like "
          "MR or another image than CT; these networks read CT in Hounsfield units", values.find_kind("not ct")),
    Check("values: odd", "doubt", "values of {low:g} to {high:g} are not spread as those of a body in HU (usual: air "
          "at -1000, fat at -100, soft tissue at 0 to 150)", values.find_kind("odd")),
    Check("values: padding", "note", "{share:.0%} of the voxels are {value:g}, which stands for nothing measured",
          values.find_padding),
    Check("values: clipped", "note", "nothing lies below {low:g}: the values were cut to a window",
          values.find_clipping),
    Check("view: head", "doubt", "this looks like a head: {width:.0f} mm wide, {bone:.0%} of it bone (an abdomen is "
          "wider, and has 2 to 8 %)", view.find_head),
    Check("view: legs", "doubt", "this looks like legs: two alike bodies side by side in {share:.0%} of the slices",
          view.find_legs),
    Check("view: phantom", "doubt", "this looks like a phantom: {share:.0%} of it is one material of {hu:.0f} HU, and "
          "{fat:.0%} of it fat (a body has many tissues, of which none makes more than half, and fat)",
          view.find_phantom),
    Check("values: drift", "doubt", "most soft tissue lies at {peak:.0f} HU; usual are {low:.0f} to {high:.0f} (a cone "
          "beam, or a bad calibration?)", values.find_drift),
    Check("view: thorax only", "doubt", "the scan ends in the lungs ({share:.0%} of its lowest sections; usual: none): "
          "are the kidneys in it at all?", view.find_thorax),
    Check("view: upside down", "doubt", "at the feet's end is the {what}: the slices seem to be in the wrong "
          "order, or the patient's position is wrong (feet first?)", view.find_upside_down),
    Check("view: face down", "doubt", "the spine stands in the front part of the body ({place:.0%} of the way; usual: "
          "15 to 50 %): front and back seem to be exchanged", view.find_face_down),
    Check("view: mirrored", "doubt", "the liver seems to lie on the left ({left:.0f} mL more of even tissue than on "
          "the right): the scan is mirrored, unless the person is: look before you trust a side", view.find_mirrored),
    Check("view: slices missing", "doubt", "two slices differ {ratio:.1f} times as much as any near them (usual: below "
          "1.25): slices seem to be missing between them", view.find_missing_slices),
    Check("view: slices doubled", "doubt", "{count} slices are the very same as the one before",
          view.find_duplicate_slices),
    Check("view: thick slices", "doubt", "voxels of {sizes} mm; the networks have seen slices of {limit:g} mm at most",
          view.find_thick_slices),
    Check("view: short", "note", "only {height:.0f} mm from feet to head: kidneys may be cut", view.find_short_field),
    Check("view: tilted", "note", "the axes are {degrees:.1f} degrees off square, as of a tilted gantry",
          view.find_tilt),
)  # fmt: skip

# Of the labels, with the scan.
RESULT_CHECKS: Final[tuple[Check[ResultFacts], ...]] = (
    Check("kidneys: none", "refuse", "no kidney was found", kidneys.find_empty),
    Check("kidneys: one", "note", "a single kidney of {ml:.0f} mL (or two that touch)", kidneys.find_one),
    Check("kidneys: many", "doubt", "{count} kidneys; usual are two", kidneys.find_many),
    Check("kidneys: pieces", "doubt", "{count} loose pieces; usual are none, and at most {limit}",
          kidneys.find_pieces),
    Check("kidneys: small", "doubt", "{ml:.0f} mL of kidney tissue in all; usual are 150 to 500, and at least "
          "{low:.0f}", kidneys.find_small),
    Check("kidneys: no tissue", "doubt", "a mass of {whole:.0f} mL with only {ml:.1f} mL of kidney tissue around it",
          kidneys.find_no_tissue),
    Check("kidneys: large", "doubt", "{ml:.0f} mL of {what}; usual is less than half of {high:.0f}, the most "
          "that is believed", kidneys.find_large),
    Check("kidneys: values", "doubt", "a kidney of {hu:.0f} HU; usual are {low:.0f} to {high:.0f}",
          kidneys.find_values),
    Check("kidneys: spread", "doubt", "half of a kidney's values are {spread:.0f} HU apart; usual are 20 to 60, and at "
          "most {limit:.0f}", kidneys.find_spread),
    Check("kidneys: fat", "doubt", "{share:.0%} of a kidney is fat or air; usual is less than 5 %, and at most "
          "{limit:.0%}", kidneys.find_fat),
    Check("kidneys: bone", "doubt", "{share:.0%} of a kidney is as dense as bone; at most {limit:.0%} may be",
          kidneys.find_bone),
    Check("kidneys: edge", "doubt", "at only {share:.0%} of a kidney's surface does the scan change; usual are 80 % "
          "and more", kidneys.find_edge),
    Check("kidneys: air", "doubt", "{share:.0%} of a kidney's surface touches air, as of the lung or outside of the "
          "body; at most {limit:.0%} may", kidneys.find_air),
    Check("kidneys: flat end", "doubt", "a kidney ends flat, as if sawn off at {share:.0%} of its full section",
          kidneys.find_flat),
    Check("kidneys: cut", "note", "the border of the scan cuts a kidney", kidneys.find_cut),
    Check("kidneys: outside", "doubt", "{share:.0%} of a kidney lies outside of the body", kidneys.find_outside),
    Check("kidneys: place", "doubt", "a kidney {right:.0f} mm beside the spine and {front:.0f} mm before it; usual are "
          "40 to 90 and -30 to 50 (transplants and pelvic kidneys lie elsewhere)", kidneys.find_place),
    Check("kidneys: one side", "doubt", "both kidneys lie on the {side}", kidneys.find_one_side),
    Check("kidneys: unlike", "doubt", "the two kidneys differ by a factor of {ratio:.1f} in tissue, by {apart:.0f} HU "
          "and by {off:.0f} mm in height, depth or distance from the spine; usual are less than 2, 20 and 50: is one "
          "of them the spleen?", kidneys.find_unlike),
    Check("lesions: dense cyst", "doubt", "{name} has {hu:.0f} HU; cysts have 0 to 20, with blood up to 100",
          lesions.find_dense_cyst),
    Check("lesions: fatty cyst", "doubt", "{name} has {hu:.0f} HU, as fat or air; cysts have 0 to 20",
          lesions.find_fatty_cyst),
    Check("lesions: strange tumour", "doubt", "{name} has {hu:.0f} HU, as air or bone", lesions.find_strange_tumor),
    Check("lesions: fatty tumour", "note", "{name} has {hu:.0f} HU: it holds fat", lesions.find_fatty_tumor),
    Check("lesions: many", "doubt", "{count} lesions of kind {kind}; usual are a few, and at most {limit}",
          lesions.find_many),
    Check("lesions: confetti", "doubt", "{count} lesions below {ml:g} mL; at most {limit} are believed",
          lesions.find_confetti),
    Check("lesions: large", "doubt", "{ml:.0f} mL of {kind}; no known case has more than {limit:.0f}",
          lesions.find_large),
    Check("lesions: larger than kidneys", "note", "{ml:.0f} mL of lesions, and {tissue:.0f} mL of kidney tissue",
          lesions.find_larger_than_kidneys),
    Check("networks: disagree", "doubt", "coarse and fine networks agree on the kidneys by a Dice of {dice:.2f} only; "
          "usual are 0.85 and more", certainty.find_disagreement),
    Check("networks: unsure", "doubt", "the kidney network is sure of its kidneys to {sure:.0%} only (entropy around "
          "them {entropy:.2f} bits); usual are 95 % and more", certainty.find_unsure),
    Check("networks: answers differ", "doubt", "{among} agree on the kidneys by a Dice of {dice:.2f} only; usual are "
          "0.90 and more", certainty.find_different_kidneys),
    Check("networks: lesions differ", "note", "{among} agree on the masses by a Dice of {dice:.2f} only; usual are "
          "0.70 and more", certainty.find_different_masses),
    Check("lesions: unsure", "note", "of lesions that the network is as sure of as of {name}, {confidence:.0%} are "
          "right", lesions.find_unlikely),
)  # fmt: skip


def check_input(facts: ImageFacts) -> list[Finding]:
    """What is odd about a scan."""
    return run_checks(INPUT_CHECKS, facts)


def check_result(facts: ResultFacts) -> list[Finding]:
    """What is odd about a result."""
    return run_checks(RESULT_CHECKS, facts)


def check_labels(
    result: CascadeResult, grey: Array | None, lesions: list[LesionRow], volumes_ml: dict[str, float]
) -> list[Finding]:
    """What is odd about the labels of a cascade and its scan; ``grey`` is the scan within the bounds of all regions."""
    image, bounds = result.facts, result.bounds
    if image is None:
        return result.findings
    if bounds is None or grey is None:
        facts = ResultFacts(image, [], [], [], {})
    else:
        facts = ResultFacts.of(
            image, bounds.crop(result.labels), grey, bounds, lesions, volumes_ml, certainty.measure(result)
        )
    # What is wrong with a scan is why its result is wrong: it comes first.
    return sorted(result.findings + check_result(facts), key=lambda finding: finding.severity == "note")


def refusal(findings: list[Finding]) -> str:
    """Why a scan is surely nothing for the networks, with the remedy; empty for all others."""
    reasons = [finding.text for finding in findings if finding.severity == "refuse"]
    return f"{'; '.join(reasons)} ({_ALL_THE_SAME})" if reasons else ""
