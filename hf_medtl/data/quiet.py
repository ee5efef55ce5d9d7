"""Silence for image libraries, whose warnings and logs quote headers and patient names."""

import logging
import sys
import threading
import warnings


class QuietReaders:
    """Context manager that silences warnings and logs of image libraries, which quote headers and patient names.

    `warnings.catch_warnings` alone is not enough if multiple threads read at once: the first thread to leave would
    restore the warnings for all. Here the last one does.
    """

    LOGGERS = ("PIL", "pydicom", "highdicom", "pylibjpeg", "libjpeg", "openjpeg", "nibabel")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0

    def __enter__(self) -> None:
        with self.lock:
            self.depth += 1
            if self.depth == 1:
                self.warnings = warnings.catch_warnings()
                self.warnings.__enter__()
                warnings.simplefilter("ignore")
                self.levels = {name: logging.getLogger(name).level for name in self.LOGGERS}
                for name in self.LOGGERS:
                    logging.getLogger(name).setLevel(logging.CRITICAL + 1)
                self.opencv = sys.modules.get("cv2")  # prints libtiff's warnings
                if self.opencv is not None:
                    # OpenCV 5 has a module for it, 4 has a function.
                    self.set_opencv_level = getattr(self.opencv, "setLogLevel", None) or (
                        self.opencv.utils.logging.setLogLevel
                    )
                    self.opencv_level = self.set_opencv_level(0)  # silent

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                self.warnings.__exit__(None, None, None)
                for name, level in self.levels.items():
                    logging.getLogger(name).setLevel(level)
                if self.opencv is not None:
                    self.set_opencv_level(self.opencv_level)


QUIET = QuietReaders()
