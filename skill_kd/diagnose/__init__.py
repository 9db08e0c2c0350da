"""Find changes in production logs. Uses no network, and shows text of a log only on request."""

from skill_kd.diagnose.changes.scan import Options, window_unit
from skill_kd.diagnose.diagnosis import diagnose
from skill_kd.diagnose.formats.readers import FORMATS
from skill_kd.diagnose.report.diagnosis_result import Diagnosis
from skill_kd.kd.dataset.formats.generic import Fields

__all__ = ["FORMATS", "Diagnosis", "Fields", "Options", "diagnose", "window_unit"]
