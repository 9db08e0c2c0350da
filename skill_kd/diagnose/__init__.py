"""From production logs to findings: readers · detectors · findings. No network, and no text of the log unless asked."""

from skill_kd.diagnose.changes.scan import Options, window_unit
from skill_kd.diagnose.diagnosis import diagnose
from skill_kd.diagnose.formats.readers import FORMATS, Fields
from skill_kd.diagnose.report.diagnosis_result import Diagnosis

__all__ = ["FORMATS", "Diagnosis", "Fields", "Options", "diagnose", "window_unit"]
