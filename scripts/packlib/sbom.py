"""The bill of materials of a bundle, as CycloneDX: every wheel with version, hash, licence and package URL.

Read from the wheels themselves, so that it needs no network and says nothing that does not lie in the bundle. Serial number
and time come from the content: the same wheels give the same document.
"""

from __future__ import annotations

import uuid
import zipfile
from datetime import UTC, datetime
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement

from packlib.checksums import sha256_of
from packlib.locks import canonical
from packlib.papers import license_of


def sbom(wheels: Path, version: str, epoch: int) -> str:
    """The document as JSON, for all wheels in a folder."""
    found = {path: _metadata(path) for path in sorted(wheels.glob("*.whl"))}
    components = {canonical(metadata["Name"]): _component(path, metadata) for path, metadata in found.items()}
    whole = Component(name="histofed-bundle", version=version, type=ComponentType.APPLICATION, bom_ref="histofed-bundle")
    bom = Bom(
        components=components.values(),
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, "".join(sha256_of(path) for path in found)),
        metadata=BomMetaData(component=whole, timestamp=datetime.fromtimestamp(epoch, UTC)),
        dependencies=[
            *(_dependency(components, canonical(metadata["Name"]), metadata) for metadata in found.values()),
            Dependency(whole.bom_ref, [Dependency(components["histofed"].bom_ref)]),
        ],
    )
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2) + "\n"


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1)
        return HeaderParser().parsestr(archive.read(name).decode())


def _component(wheel: Path, metadata: Message) -> Component:
    name, version = canonical(metadata["Name"]), str(metadata["Version"])
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}=={version}",
        purl=PackageURL("pypi", name=name, version=version, qualifiers={"file_name": wheel.name}),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256_of(wheel))],
        licenses=[LicenseFactory().make_from_string(license_of(metadata))],
        description=metadata["Summary"],
    )


def _dependency(components: dict[str, Component], name: str, metadata: Message) -> Dependency:
    """What one wheel requires, of what is in the bundle: an extra that nobody asked for is not."""
    required = {canonical(Requirement(line).name) for line in metadata.get_all("Requires-Dist", [])}
    below = [Dependency(components[each].bom_ref) for each in sorted(required & components.keys() - {name})]
    return Dependency(components[name].bom_ref, below)
