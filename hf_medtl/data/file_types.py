"""File types that are no images here: what a file is, by how it begins, and what to do about it."""

import re

# The first match counts.
OTHER_FILE_TYPES = {
    rb"version https://git-lfs\.github\.com": (
        "This is a Git LFS pointer, not the image itself. Run git lfs pull, or download the file."
    ),
    rb"PK(\x03\x04|\x05\x06|\x07\x08)": "This is a zip archive or an office document, not an image. Unpack it.",
    rb"Rar!|7z\xbc\xaf|\x1f\x8b|BZh|\xfd7zXZ|.{257}ustar": "This is an archive, not an image. Unpack it.",
    rb".{0,1000}%PDF-": "This is a PDF document, not an image. Save the image in it as PNG or JPEG.",
    rb"MZ|\x7fELF|\xca\xfe\xba\xbe|[\xcf\xce]\xfa\xed\xfe|#!": "This is a program, not an image.",
    rb"....ftypavi[fs]": "This is an AVIF image, which is not supported. Save it as PNG or JPEG.",
    rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)": "This is a HEIC image, which is not supported. Save it as PNG or JPEG.",
    rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI |\0\0\x01[\xb3\xba]|FLV\x01": (
        "This is a video, not an image. Save one frame of it as PNG."
    ),
    rb"RIFF....WAVE|ID3|OggS|fLaC": "This is a sound file, not an image.",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "This is JPEG 2000, which is supported inside DICOM only. Save it as PNG.",
    rb"\xff\x0a|\0\0\0\x0cJXL |\xff\xd8\xff\xf7": (
        "This is a JPEG XL or JPEG-LS image, which is not supported. Save it as PNG."
    ),
    rb"8BPS|\0\0[\x01\x02]\0[^\0]\0|\x76\x2f\x31\x01|#\?RADIANCE|P[1-7]\s+[#\d]": (
        "This is an image of a kind that is not supported. Save it as PNG."
    ),
    rb"\x5c\x01\0\0|\0\0\x01\x5c": (
        "This is the header of an Analyze or NIfTI image in two files. Save it as one .nii file."
    ),
    rb"NRRD|ObjectType\s*=|NDims\s*=|CDF[\x01\x02]": (
        "This is a volume in a format that is not supported, such as NRRD or MetaImage. Save it as NIfTI."
    ),
    rb"\x93NUMPY|\x89HDF|MATLAB 5|SQLite|PAR1": (
        "This is an array or a table, not an image. Save each image as PNG or TIFF."
    ),
    rb"(?i)\s*(<\?xml.{0,4000})?<(.{0,4000}<)?svg\b": "This is a drawing (SVG), not an image. Save it as PNG.",
    rb"(?i)\s*<(.{0,4000}<)?(!doctype html|html|head|body|script)\b": (
        "This is a web page (HTML), such as that of a failed download, not an image. Download the image again."
    ),
    rb"\xff\xfe|\xfe\xff|[^\0-\x08\x0e-\x1f]+\Z": "This is text, not an image.",
}
SUPPORTED = "PNG, JPEG, TIFF, WebP, BMP, GIF, DICOM or NIfTI"
SIGNATURES = {rb"\x89PNG": "PNG", rb"\xff\xd8\xff": "JPEG", rb"II[*+]\0|MM\0[*+]": "TIFF", rb"GIF8": "GIF",
              rb"RIFF....WEBP": "WebP", rb"BM.{4}\0{4}": "BMP"}  # fmt: skip


def image_type(content: bytes) -> str:
    """Return the name of the image format, of those that Pillow reads here, by the first bytes; "" for others."""
    return next((name for start, name in SIGNATURES.items() if re.match(start, content, re.DOTALL)), "")


def other_file_type(content: bytes) -> str:
    """Return the sentences that say what a file is, if not an image, and what to do; "" if unknown.

    Args:
        content: The file, or at least its first 8,192 bytes.
    """
    if not content.strip(b"\0"):
        return "The file has only zeros. Download it again." if content else "The file is empty. Download it again."
    head = content[:8192].removeprefix(b"\xef\xbb\xbf")
    return next((text for start, text in OTHER_FILE_TYPES.items() if re.match(start, head, re.DOTALL)), "")
