"""From production logs to findings: readers · detectors · findings. No network, and no text of the log unless asked."""

from skill_kd.diagnose.diagnosis import diagnose
from skill_kd.diagnose.readers import FORMATS, Fields
from skill_kd.diagnose.result import Diagnosis
from skill_kd.diagnose.scan import Options, window_unit

__all__ = ["FORMATS", "Diagnosis", "Fields", "Options", "diagnose", "window_unit"]
