"""CT series of a painted patient, as scanners write them: complete headers, any geometry. Needs pydicom."""

import numpy as np

AXIAL = ((1, 0, 0), (0, 1, 0))
UID = "1.2.826.0.1.3680043.2.1125.77."
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"


def oblique(degrees):
    tilt = np.deg2rad(degrees)
    return (1, 0, 0), (0, np.cos(tilt), np.sin(tilt))


def header(name="Müller^Zoë", sop_class=CT):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.Modality = sop_class, "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = name, "P1", "19600101", "F"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = UID + "1", UID + "2", UID + "3"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240102", "030405", "1", "A1"
    ds.ReferringPhysicianName, ds.Manufacturer, ds.PositionReferenceIndicator = "", "Painter", ""
    ds.SeriesNumber, ds.AcquisitionNumber, ds.SeriesDescription = 3, 1, "arteriell"
    ds.KVP, ds.PatientPosition = "120", "HFS"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    return ds


def numbers(values):
    return [f"{value:.10g}"[:16] for value in values]


def positions(count, axes, spacing, origin):
    normal = np.cross(*axes) * spacing[0]
    return [np.array(origin) + index * normal for index in range(count)]


def write_ct(folder, array, axes=AXIAL, spacing=(2.5, 0.8, 0.7), origin=(-40, -30, 100), order=None, skip=(), **given):
    """``array`` (HU) in slices, rows, columns; ``order``: under which number of file and instance a slice goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, place in enumerate(positions(len(array), axes, spacing, origin)):
        if index in skip:
            continue
        number = index if order is None else order[index]
        ds = header()
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{UID}4.{index + 1}"
        ds.InstanceNumber = number + 1
        ds.ImagePositionPatient = numbers(place)
        ds.ImageOrientationPatient = numbers(np.ravel(axes))
        ds.PixelSpacing, ds.SliceThickness = numbers(spacing[1:]), numbers(spacing[:1])[0]
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "0", "HU"
        _pixels(ds, array[index])
        for name, value in given.items():
            setattr(ds, name, value)
        ds.save_as(folder / f"IM{number:04d}.dcm", enforce_file_format=True)
    return folder


def write_enhanced(folder, array, axes=AXIAL, spacing=(2.5, 0.8, 0.7), origin=(-40, -30, 100), order=None):
    """The same in one file; ``order``: the slices as they follow each other in it."""
    from pydicom.dataset import Dataset

    folder.mkdir(parents=True, exist_ok=True)
    order = list(range(len(array))) if order is None else list(order)
    ds = header(sop_class=ENHANCED_CT)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{UID}5"
    ds.InstanceNumber, ds.NumberOfFrames = 1, len(array)
    shared = Dataset()
    measures, transform, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = numbers(spacing[1:]), numbers(spacing[:1])[0]
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = "1", "0", "HU"
    orientation.ImageOrientationPatient = numbers(np.ravel(axes))
    shared.PixelMeasuresSequence, shared.PixelValueTransformationSequence = [measures], [transform]
    shared.PlaneOrientationSequence = [orientation]
    ds.SharedFunctionalGroupsSequence = [shared]
    places, frames = positions(len(array), axes, spacing, origin), []
    for index in order:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = numbers(places[index])
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    _pixels(ds, array[order])
    ds.save_as(folder / "all.dcm", enforce_file_format=True)
    return folder


def _pixels(ds, array):
    ds.Rows, ds.Columns = array.shape[-2:]
    ds.PixelData = np.ascontiguousarray(array, dtype="<i2").tobytes()
