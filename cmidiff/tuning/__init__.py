"""Settings chosen on data: a search over the strengths of guidance and CMI, and the presets it writes."""

from cmidiff.tuning.preset import Preset as Preset
from cmidiff.tuning.preset import load_preset as load_preset
from cmidiff.tuning.preset import save_preset as save_preset
from cmidiff.tuning.problem import METRICS as METRICS
from cmidiff.tuning.problem import Images as Images
from cmidiff.tuning.problem import read_images as read_images
from cmidiff.tuning.space import Space as Space
from cmidiff.tuning.study import Outcome as Outcome
from cmidiff.tuning.study import Report as Report
from cmidiff.tuning.study import Search as Search
from cmidiff.tuning.study import open_study as open_study
from cmidiff.tuning.study import tune as tune
