"""Can this mask be that of a person? What a scan that is mirrored, turned or of something else leads to.

Nothing in a file says that a patient was mirrored together with the header. But a network that was trained on upright
patients goes on calling what lies on the right the liver, and the sizes that it arrives at are rare in people. They
are warned about and no more: a patient may well have a spleen of three litres.
"""

from __future__ import annotations

from collections.abc import Mapping

from meddelinea.checks.limits import KIDNEYS, VESSELS, OrganSizes
from meddelinea.findings import Finding, warn
from meddelinea.results.statistics import OrganStatistics


def check_mask(measured: Mapping[str, OrganStatistics], expected: OrganSizes) -> list[Finding]:
    """What to say of a mask: that it is empty, or that its organs have sizes that people rarely have.

    Parameters
    ----------
    measured
        Measurements of all organs that were asked for. The spleen is compared with a liver that the scan does not cut
        at the top (where the spleen may reach lower than the liver), kidneys with one that it does not cut at the
        bottom.
    expected
        What the scans that the model was trained on say of the sizes of organs.
    """
    if not any(organ.found for organ in measured.values()):
        sought = ", ".join(measured)
        message = (
            f"no organ was found, so the mask is empty; sought: {sought}. Does the scan show them, the right way up?"
        )
        return [warn("empty_mask", message)]
    return [*_sizes(measured, expected), *_volumes(measured, expected)]


def _sizes(measured: Mapping[str, OrganStatistics], expected: OrganSizes) -> list[Finding]:
    liver, spleen = measured.get("liver"), measured.get("spleen")
    kidneys = [measured[name] for name in KIDNEYS if name in measured]
    if liver is None or not liver.found:
        return []
    findings = []
    if (
        spleen is not None
        and "head" not in liver.touches_edge
        and liver.volume_ml + spleen.volume_ml >= expected.seen_ml
    ):
        share = spleen.volume_ml / liver.volume_ml
        if share > expected.largest_spleen:
            found = f"the spleen has {share:.2g} times the liver's volume; expected {expected.largest_spleen:g} at most"
            findings.append(warn("unlikely_sizes", f"{found}: much enlarged, or the scan has left and right exchanged"))
    if len(kidneys) == 2 and "feet" not in liver.touches_edge and liver.volume_ml >= expected.seen_ml:
        share = sum(kidney.volume_ml for kidney in kidneys) / liver.volume_ml
        if share < expected.smallest_kidneys:
            least = f"{expected.smallest_kidneys:g} at least"
            found = f"the kidneys have {share:.2g} times the liver's volume; expected {least}"
            findings.append(warn("unlikely_sizes", f"{found}: removed, or the scan is turned front to back"))
    vessels = [measured[name] for name in VESSELS if name in measured]
    if len(vessels) == 2 and liver.volume_ml >= expected.seen_ml:  # they run along the whole liver, however it is cut
        share = sum(vessel.volume_ml for vessel in vessels) / liver.volume_ml
        if share < expected.smallest_vessels:
            least = f"{expected.smallest_vessels:g} at least"
            found = f"aorta and vena cava have {share:.2g} times the liver's volume; expected {least}"
            findings.append(warn("unlikely_sizes", f"{found}: the scan is turned front to back, or the mask is wrong"))
    return findings


def _volumes(measured: Mapping[str, OrganStatistics], expected: OrganSizes) -> list[Finding]:
    """Organs of volumes that are far from all of the training scans; one that the scan cuts may be small."""
    findings = []
    for name, organ in measured.items():
        if not organ.found or name not in expected.organ_ml:
            continue
        low, high = expected.organ_ml[name]
        if organ.volume_ml > high or (organ.volume_ml < low and not organ.touches_edge):
            message = f"{name} has {organ.volume_ml:.3g} ml; expected {low:.3g} to {high:.3g} by the training scans"
            findings.append(warn("unlikely_sizes", f"{message}: unusual, or the mask is wrong"))
    return findings
