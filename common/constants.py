"""Numbers that data, models and engine must agree on."""

MIN_DEPTH_M = 1.0
"""Points nearer than this to a camera's plane, metres, make no pair with its pixels, unless the camera says otherwise
(`CameraView.min_depth_m`). Source: SLidR's released code."""
