"""Can this mask be that of a person? What a scan that is mirrored, turned or of something else leads to.

Nothing in a file says that a patient was mirrored together with the header. But a network that was trained on upright
patients goes on calling what lies on the right the liver, and the sizes that it arrives at are rare in people. They
are warned about and no more: a patient may well have a spleen of three litres.
"""

from __future__ import annotations

from collections.abc import Mapping

from meddelinea.findings import Finding, warn
from meddelinea.results.statistics import OrganStatistics

#: Volumes as shares of the liver's. Spleen: 0.04 to 0.27 in 21 patients of BTCV, 1.4 in one with a spleen of 3 litres.
#: Kidneys, both together: 0.07 to 0.27. Aorta and inferior vena cava, both together: 0.06 to 0.23 in 18 patients.
LARGEST_SPLEEN = 0.6
SMALLEST_KIDNEYS = 0.05
SMALLEST_VESSELS = 0.03
#: Liver and spleen, or the liver alone, must be seen in this many millilitres for their shares to mean anything.
SEEN_ML = 500.0
KIDNEYS = ("left kidney", "right kidney")
VESSELS = ("aorta", "inferior vena cava")


def check_mask(measured: Mapping[str, OrganStatistics]) -> list[Finding]:
    """What to say of a mask: that it is empty, or that its organs have sizes that people rarely have.

    Parameters
    ----------
    measured
        Measurements of all organs that were asked for. The spleen is compared with a liver that the scan does not cut
        at the top (where the spleen may reach lower than the liver), kidneys with one that it does not cut at the
        bottom.
    """
    if not any(organ.found for organ in measured.values()):
        sought = ", ".join(measured)
        message = (
            f"no organ was found, so the mask is empty; sought: {sought}. Does the scan show them, the right way up?"
        )
        return [warn("empty_mask", message)]
    return _sizes(measured)


def _sizes(measured: Mapping[str, OrganStatistics]) -> list[Finding]:
    liver, spleen = measured.get("liver"), measured.get("spleen")
    kidneys = [measured[name] for name in KIDNEYS if name in measured]
    if liver is None or not liver.found:
        return []
    findings = []
    if spleen is not None and "head" not in liver.touches_edge and liver.volume_ml + spleen.volume_ml >= SEEN_ML:
        share = spleen.volume_ml / liver.volume_ml
        if share > LARGEST_SPLEEN:
            found = f"the spleen has {share:.2g} times the liver's volume; expected {LARGEST_SPLEEN:g} at most"
            findings.append(warn("unlikely_sizes", f"{found}: much enlarged, or the scan has left and right exchanged"))
    if len(kidneys) == 2 and "feet" not in liver.touches_edge and liver.volume_ml >= SEEN_ML:
        share = sum(kidney.volume_ml for kidney in kidneys) / liver.volume_ml
        if share < SMALLEST_KIDNEYS:
            found = f"the kidneys have {share:.2g} times the liver's volume; expected {SMALLEST_KIDNEYS:g} at least"
            findings.append(warn("unlikely_sizes", f"{found}: removed, or the scan is turned front to back"))
    vessels = [measured[name] for name in VESSELS if name in measured]
    if len(vessels) == 2 and liver.volume_ml >= SEEN_ML:  # they run along the whole liver, however it is cut
        share = sum(vessel.volume_ml for vessel in vessels) / liver.volume_ml
        if share < SMALLEST_VESSELS:
            found = (
                f"aorta and vena cava have {share:.2g} times the liver's volume; expected {SMALLEST_VESSELS:g} at least"
            )
            findings.append(warn("unlikely_sizes", f"{found}: the scan is turned front to back, or the mask is wrong"))
    return findings
