"""A CT or a label map, in memory and in files."""

from kits_cascade.imports import without

# nibabel would load pydicom with all of its decoders, a sixth of the start, to read DICOM headers in NIfTI extensions.
with without("pydicom"):
    import nibabel.nifti1  # noqa: F401
