"""Names of media types: canonical names, aliases and container types.

Canonical names are those of IANA's registry, or of shared-mime-info where there is no registered
one. Declared types, patterns of `allow` and `deny` and verdicts of the sniffer are all compared by
their canonical names.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

UNKNOWN = "application/octet-stream"
EMPTY = "application/x-empty"
TEXT = "text/plain"
HTML = "text/html"
XHTML = "application/xhtml+xml"
SVG = "image/svg+xml"
XML = "application/xml"
JSON = "application/json"
ZIP = "application/zip"
COMPOUND = "application/x-ole-storage"

OFFICE = "application/vnd.openxmlformats-officedocument."
OPEN_DOCUMENT = "application/vnd.oasis.opendocument."

# Sources: IANA's media type registry ("Deprecated aliases for this type" in its templates), the
# aliases of freedesktop.org's shared-mime-info 2.2 (freedesktop.org.xml), section 4 of the WHATWG
# MIME Sniffing Standard (JavaScript, fonts), and what libmagic 5.46 returns.
ALIASES: dict[str, tuple[str, ...]] = {
    # images
    "image/jpeg": ("image/jpg", "image/pjpeg", "image/x-jpeg", "image/jpe", "image/x-citrix-jpeg"),
    "image/png": ("image/x-png", "image/apng", "image/vnd.mozilla.apng", "image/x-citrix-png"),
    "image/gif": ("image/x-gif",),
    "image/bmp": ("image/x-bmp", "image/x-ms-bmp", "image/x-windows-bmp", "image/ms-bmp"),
    "image/tiff": ("image/tif", "image/x-tif", "image/x-tiff"),
    "image/webp": ("image/x-webp",),
    "image/avif": ("image/avif-sequence", "image/avifs"),
    "image/vnd.microsoft.icon": ("image/x-icon", "image/ico", "image/icon", "image/x-ico"),
    "image/jp2": ("image/jpeg2000", "image/jpeg2000-image", "image/x-jpeg2000-image", "image/jpx"),
    "image/j2c": ("image/x-jp2-codestream", "image/x-j2c"),
    "image/svg+xml": ("image/svg", "image/svg-xml"),
    "image/vnd.adobe.photoshop": (
        *("image/photoshop", "image/x-photoshop", "image/psd", "image/x-psd"),
        *("application/photoshop", "application/x-photoshop"),
    ),
    "image/emf": ("image/x-emf", "application/emf", "application/x-emf"),
    "image/wmf": ("image/x-wmf", "application/wmf", "application/x-wmf", "image/x-win-metafile"),
    "image/vnd.djvu": ("image/x-djvu", "image/x.djvu", "image/djvu"),
    "image/icns": ("image/x-icns",),
    "image/qoi": ("image/x-qoi",),
    "image/vnd.ms-dds": ("image/x-dds",),
    "image/vnd.radiance": ("image/x-hdr", "image/x-radiance"),
    "image/x-exr": ("image/exr", "image/aces"),
    "image/x-xcf": ("image/xcf",),
    "image/x-portable-graymap": ("image/x-portable-greymap",),
    "image/x-adobe-dng": ("image/dng", "image/x-dng"),
    # sound
    "audio/mpeg": (
        *("audio/mp3", "audio/x-mp3", "audio/x-mpeg", "audio/x-mpg", "audio/mpeg3"),
        *("audio/x-mpeg-3", "audio/mpegapplication/mp3", "audio/mp2", "audio/x-mp2"),
    ),
    "audio/wav": ("audio/x-wav", "audio/wave", "audio/vnd.wave", "audio/x-pn-wav"),
    "audio/aac": ("audio/x-aac", "audio/aacp", "audio/x-hx-aac-adts", "audio/vnd.dlna.adts"),
    "audio/mp4": ("audio/m4a", "audio/x-m4a", "audio/mp4a-latm", "audio/x-mp4"),
    "audio/flac": ("audio/x-flac",),
    "audio/ogg": ("audio/x-ogg", "audio/vorbis", "audio/opus", "audio/x-opus+ogg"),
    "audio/aiff": ("audio/x-aiff", "audio/aif", "sound/aiff"),
    "audio/midi": ("audio/mid", "audio/x-midi", "application/x-midi"),
    "audio/basic": ("audio/x-au", "audio/au"),
    "audio/ac3": ("audio/vnd.dolby.dd-raw", "audio/x-ac3"),
    "audio/matroska": ("audio/x-matroska",),
    "audio/x-ms-wma": ("audio/wma",),
    # films
    "video/mp4": ("video/mpeg4", "video/mp4v-es", "video/x-mp4", "application/mp4"),
    "video/x-m4v": ("video/m4v",),
    "video/quicktime": ("video/mov", "video/x-quicktime", "image/mov"),
    "video/x-msvideo": ("video/avi", "video/msvideo", "video/x-avi", "video/vnd.avi", "video/divx"),
    "video/matroska": ("video/x-matroska", "video/mkv"),
    "video/mpeg": ("video/mpg", "video/x-mpeg", "video/mp2p", "video/mpeg-system", "video/x-mpeg2"),
    "video/mp2t": ("video/vnd.dlna.mpeg-tts", "video/x-mpegts", "video/mpeg-ts", "video/mts"),
    "video/x-ms-asf": (
        *("application/vnd.ms-asf", "video/x-ms-wm", "video/x-ms-wmv", "video/x-ms-asf-plugin"),
    ),
    "video/x-flv": ("video/flv", "application/x-flash-video"),
    "video/3gpp": ("video/3gp", "audio/3gpp"),
    "video/3gpp2": ("video/3g2", "audio/3gpp2"),
    "video/ogg": ("video/x-ogg", "video/x-theora+ogg", "video/theora"),
    # archives
    "application/zip": ("application/x-zip", "application/x-zip-compressed", "multipart/x-zip"),
    "application/gzip": (
        *("application/x-gzip", "application/gzip-compressed", "application/gzipped"),
        *("application/x-gunzip", "application/x-gzip-compressed", "gzip/document"),
        *("application/x-tgz", "application/x-compressed-tar"),
    ),
    "application/x-bzip2": ("application/bzip2", "application/x-bzip", "application/x-bz2"),
    "application/x-xz": ("application/xz",),
    "application/zstd": ("application/x-zstd", "application/zst"),
    "application/x-lz4": ("application/lz4",),
    "application/x-tar": ("application/tar", "application/x-gtar", "application/x-ustar"),
    "application/vnd.rar": ("application/x-rar", "application/x-rar-compressed", "application/rar"),
    "application/x-7z-compressed": ("application/x-7zip", "application/7z", "application/x-7z"),
    "application/vnd.ms-cab-compressed": ("application/x-cab", "application/cab"),
    "application/java-archive": ("application/x-java-archive", "application/x-jar"),
    "application/vnd.debian.binary-package": ("application/x-deb", "application/x-debian-package"),
    "application/x-rpm": ("application/x-redhat-package-manager",),
    "application/x-iso9660-image": ("application/vnd.efi.iso", "application/x-cd-image"),
    # documents
    "application/pdf": ("application/x-pdf", "application/acrobat", "image/pdf"),
    "application/rtf": ("text/rtf", "application/x-rtf", "text/richtext"),
    "application/postscript": ("application/x-postscript", "image/x-eps", "application/eps"),
    "application/msword": ("application/vnd.ms-word", "application/x-msword", "application/doc"),
    "application/vnd.ms-excel": (
        *("application/msexcel", "application/x-msexcel", "application/excel"),
        *("application/x-excel", "application/x-ms-excel", "application/xls"),
    ),
    "application/vnd.ms-powerpoint": (
        *("application/mspowerpoint", "application/x-mspowerpoint", "application/powerpoint"),
    ),
    "application/vnd.ms-xpsdocument": ("application/oxps", "application/xps"),
    "application/epub+zip": ("application/x-epub+zip",),
    "application/vnd.sqlite3": ("application/x-sqlite3",),
    # programs, fonts and data
    "application/x-executable": (
        *("application/x-elf", "application/x-pie-executable", "application/x-sharedlib"),
        *("application/x-object", "application/x-coredump"),
    ),
    "application/vnd.microsoft.portable-executable": (
        *("application/x-msdownload", "application/x-dosexec", "application/x-ms-dos-executable"),
        *("application/x-msdos-program", "application/exe", "application/x-exe"),
    ),
    "application/java-vm": ("application/x-java-applet", "application/java", "application/x-java"),
    "font/ttf": ("font/sfnt", "application/x-font-ttf", "application/font-sfnt", "font/truetype"),
    "font/otf": ("application/x-font-otf", "application/vnd.ms-opentype", "font/opentype"),
    "font/woff": ("application/font-woff", "application/x-font-woff"),
    "font/woff2": ("application/font-woff2",),
    "application/vnd.apache.parquet": ("application/x-parquet", "application/parquet"),
    "application/vnd.adobe.flash.movie": ("application/x-shockwave-flash",),
    "application/vnd.android.dex": ("application/x-dex",),
    "application/dicom": ("application/x-dicom",),
    "application/x-hdf5": ("application/x-hdf", "application/vnd.hdfgroup.hdf5"),
    # text
    "text/plain": ("text/x-plain", "text/ascii"),
    "text/html": ("text/htm", "text/x-html"),
    "application/xml": ("text/xml", "application/x-xml"),
    "application/json": ("text/json", "application/x-json", "text/x-json"),
    "application/x-ndjson": (
        *("application/ndjson", "application/jsonl", "application/jsonlines", "text/jsonl"),
        *("application/x-jsonlines", "application/json-lines"),
    ),
    "text/csv": (
        "application/csv",
        "text/x-csv",
        "application/x-csv",
        "text/comma-separated-values",
    ),
    "text/tab-separated-values": ("text/tsv", "text/x-tsv"),
    "text/javascript": (
        *("application/javascript", "application/x-javascript", "text/x-javascript"),
        *("application/ecmascript", "application/x-ecmascript", "text/ecmascript"),
        *("text/jscript", "text/livescript", "text/x-ecmascript"),
    ),
    "text/markdown": ("text/x-markdown",),
    "application/yaml": ("text/yaml", "text/x-yaml", "application/x-yaml", "text/vnd.yaml"),
    "text/calendar": ("application/ics", "text/x-vcalendar"),
    "text/vcard": ("text/x-vcard", "text/directory"),
    "text/x-python": ("text/x-script.python", "application/x-python"),
    "text/x-shellscript": ("application/x-sh", "application/x-shellscript", "text/x-sh"),
    "text/x-php": ("application/x-httpd-php", "application/x-php"),
    EMPTY: ("inode/x-empty",),
    UNKNOWN: ("binary/octet-stream", "application/binary", "application/unknown"),
}

_CANONICAL = {alias: name for name, aliases in ALIASES.items() for alias in aliases}

# What a file of the type is as well, so that a container that is denied stays denied: any zip file
# becomes a "docx" or "jar" by two more members. Source: `sub-class-of` of shared-mime-info.
_CONTAINERS: dict[str, str] = {
    "application/java-archive": ZIP,
    "application/vnd.android.package-archive": ZIP,
    "application/vnd.google-earth.kmz": ZIP,
    "application/epub+zip": ZIP,
    "application/vnd.ms-xpsdocument": ZIP,
    "application/msword": COMPOUND,
    "application/vnd.ms-excel": COMPOUND,
    "application/vnd.ms-powerpoint": COMPOUND,
    "application/vnd.ms-outlook": COMPOUND,
    "application/x-msi": COMPOUND,
    XHTML: XML,
    SVG: XML,
    JSON: TEXT,
    "application/x-ndjson": TEXT,
    "application/yaml": TEXT,
    "application/sql": TEXT,
    "application/toml": TEXT,
    "message/rfc822": TEXT,
    XML: TEXT,
}
_ZIP_PREFIXES = (
    OFFICE,
    OPEN_DOCUMENT,
    "application/vnd.ms-word.",
    "application/vnd.ms-excel.",
    "application/vnd.ms-powerpoint.",
    "application/vnd.ms-visio.",
)

# Types in which a browser, or a shell, runs what it finds: never let in as mere text.
ACTIVE = frozenset(
    (HTML, XHTML, SVG, XML, "text/javascript", "text/x-php", "text/x-shellscript", "text/x-python")
)

# Containers whose content decides between names that are all right.
_SAME_CONTAINER = (
    {"video/mp4", "audio/mp4", "video/x-m4v", "video/quicktime", "video/3gpp", "video/3gpp2"},
    {"video/webm", "audio/webm", "video/matroska", "audio/matroska"},
    {"video/ogg", "audio/ogg", "application/ogg"},
    {"video/x-ms-asf", "audio/x-ms-wma"},
    {"video/mpeg", "video/mp2t"},
    {"image/heic", "image/heif", "image/heic-sequence", "image/heif-sequence"},
    {"image/jp2", "image/j2c"},
    {"image/tiff", "image/x-adobe-dng", "image/x-canon-cr2", "image/x-nikon-nef"},
    {"text/csv", "application/vnd.ms-excel"},  # Windows with Excel declares csv so
    {HTML, XHTML},
    {HTML, "text/markdown"},  # which may begin with markup
)

# Formats that a thumbnail can be made of, by the names their files go under.
RASTER = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "jpe": "image/jpeg",
    "mpo": "image/jpeg",
    "png": "image/png",
    "apng": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "avif": "image/avif",
    "ico": "image/vnd.microsoft.icon",
    "jp2": "image/jp2",
    "j2k": "image/j2c",
}

# Text types that cannot be distinguished by their bytes, by file extension.
TEXT_NAMES = {
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
    "json": JSON,
    "geojson": "application/geo+json",
    "ndjson": "application/x-ndjson",
    "jsonl": "application/x-ndjson",
    "md": "text/markdown",
    "markdown": "text/markdown",
    "yaml": "application/yaml",
    "yml": "application/yaml",
    "toml": "application/toml",
    "sql": "application/sql",
    "css": "text/css",
    "js": "text/javascript",
    "mjs": "text/javascript",
    "cjs": "text/javascript",
    "html": HTML,
    "htm": HTML,
    "shtml": HTML,
    "xhtml": XHTML,
    "xht": XHTML,
    "svg": SVG,
    "xml": XML,
    "rss": "application/rss+xml",
    "atom": "application/atom+xml",
    "gpx": "application/gpx+xml",
    "kml": "application/vnd.google-earth.kml+xml",
    "ics": "text/calendar",
    "vcf": "text/vcard",
    "eml": "message/rfc822",
    "py": "text/x-python",
    "sh": "text/x-shellscript",
    "php": "text/x-php",
}


def canonical(media_type: str) -> str:
    """Return the one name of a type, without parameters; unknown types keep the name they have."""
    name = media_type.partition(";")[0].strip().lower()
    return _CANONICAL.get(name, name)


def lineage(media_type: str) -> tuple[str, ...]:
    """Return a canonical type and the more general types it is as well, the closest first."""
    found = [media_type]
    while parent := _parent(found[-1]):
        found.append(parent)
    return tuple(found)


def matches(media_type: str, pattern: str) -> bool:
    """Return whether a pattern such as `image/*` names a canonical type, by any of its names.

    A pattern with a wildcard does not reach aliases of another kind: `image/*` is no PDF, although
    there are programs that declare one as `image/pdf`.
    """
    wanted = pattern.strip().lower()
    if canonical(wanted) == media_type:
        return True
    names = (media_type, *ALIASES.get(media_type, ()))
    return any(fnmatchcase(name, wanted) for name in names if _same_kind(name, media_type))


_DOCUMENTS = ("text", "application")


def _same_kind(one: str, other: str) -> bool:
    kinds = one.partition("/")[0], other.partition("/")[0]
    return kinds[0] == kinds[1] or all(kind in _DOCUMENTS for kind in kinds)


def are_compatible(one: str, other: str) -> bool:
    """Return whether two canonical types may name the same bytes, one maybe more exactly."""
    if one in lineage(other) or other in lineage(one):
        return True
    if one.startswith(OFFICE) and other.startswith(OFFICE):  # documents, templates, slide shows
        return one.split(".")[2] == other.split(".")[2]
    return any(one in group and other in group for group in _SAME_CONTAINER)


def is_text(media_type: str) -> bool:
    """Return whether files of a canonical type are text."""
    return TEXT in lineage(media_type)


def declared_image_type(path: str, media_type: str | None) -> str | None:
    """Return the image format that a file is declared as, or named like; None if neither."""
    declared = canonical(media_type or "")
    if declared in RASTER.values():
        return declared
    return RASTER.get(extension(path))


def extension(path: str) -> str:
    """Return the last extension of a path in lower case without its dot, or an empty string."""
    name = path.rpartition("/")[2]
    return name.rpartition(".")[2].lower() if "." in name else ""


def _parent(media_type: str) -> str | None:
    if found := _CONTAINERS.get(media_type):
        return found
    if media_type.startswith(_ZIP_PREFIXES) or media_type.endswith("+zip"):
        return ZIP
    if media_type.endswith("+xml"):
        return XML
    if media_type.endswith("+json"):
        return JSON
    if media_type.startswith("text/") and media_type != TEXT:
        return TEXT
    return None
