"""All rules on one annotation file, in one pass that corrects what it can."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

from ..annotations import is_plain_utf8, no_garbage_collection
from .annotations import AnnotationRules, Objects, reach, survey
from .findings import EXAMPLES, Effect, Finding, Findings, Kind
from .ids import NO_SUCH_IMAGE, check_categories, check_image_ids
from .images import check_files

ENCODING = Kind("file", "not in UTF-8 without a BOM", Effect.REPAIRED)
NO_ANNOTATIONS = Kind("file", "no annotations: it can only be tested on", Effect.FINE)


@dataclass
class Checked:
    """A checked annotation file.

    Attributes:
        content: the file's but for its annotations, corrected.
        findings: the worst first.
        num_images, num_annotations: in the file as it was.
        has_annotations: False for a file that can only be tested on.
        objects: that a model can be trained on.
        sizes: of each class, by its name, how many annotations are small, medium and large.
        visibilities: how many keypoints are of visibility 0, 1 and 2.
        suspicion: how much an image should be looked at, by its id.
        annotations: the corrected annotations, which are read from the file again.
    """

    content: dict
    findings: list[Finding]
    num_images: int
    num_annotations: int
    has_annotations: bool
    objects: Objects
    sizes: dict[str, list[int]]
    visibilities: list[int]
    suspicion: Counter[Hashable]
    annotations: Callable[[], Iterator[dict]]

    def corrected(self) -> dict:
        """The corrected content but for the annotations; its info says what was corrected."""
        corrections = having(self.findings, Effect.REPAIRED, Effect.CORRECTED, Effect.LEFT_OUT)
        info = self.content["info"] | {
            "corrections": [
                {"what": f"{f.kind.of}: {f.kind.what}", "count": f.count, "of": f.examples}
                for f in corrections
                if f.kind.effect is not Effect.LEFT_OUT or f.kind is NO_SUCH_IMAGE
            ]
        }
        return self.content | {"info": info}


def having(findings: list[Finding], *effects: Effect) -> list[Finding]:
    """The findings of those effects."""
    return [finding for finding in findings if finding.kind.effect in effects]


def check_file(
    json_file: str,
    image_root: str,
    *,
    decode: bool = False,
    progress: bool = False,
    max_examples: int | None = EXAMPLES,
) -> Checked:
    """Checks an annotation file and the heads of its images; the file is not changed.

    Annotations are read twice and never held all at once: memory grows with the images alone.

    Args:
        json_file: in COCO's format, perhaps without annotations.
        image_root: the folder that the images' names are relative to.
        decode: read the images whole.
        progress: show a progress bar.
        max_examples: of each finding; None for all.

    Returns:
        What was found, and the corrected content, which may still be wrong where a finding stops
        training.

    Raises:
        UsageError: if the file cannot be read, is no JSON or lacks a list.
    """
    with no_garbage_collection():
        content, known = survey(json_file)
        findings = Findings(max_examples)
        if not is_plain_utf8(json_file):
            findings.add(ENCODING, json_file)
        if known.count is None:
            findings.add(NO_ANNOTATIONS, json_file)
        num_images = len(content["images"])
        category_ids = check_categories(content, findings)
        images = check_image_ids(content, findings)
        check_files(
            content["images"],
            image_root,
            partial(reach, json_file),
            findings,
            decode=decode,
            progress=progress,
        )
        given = json_file, content, images, category_ids, known
        rules = AnnotationRules(*given, findings)
        for _ in rules.check():
            pass

    def annotations() -> Iterator[dict]:
        return chain.from_iterable(AnnotationRules(*given, Findings(0)).check())

    return Checked(
        content,
        findings.sorted(),
        num_images,
        known.count or 0,
        known.count is not None,
        rules.objects,
        rules.sizes,
        rules.visibilities,
        findings.suspicion,
        annotations,
    )
