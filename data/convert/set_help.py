"""What `tandem prepare --help` says about each data set: one entry each. Light: it imports no converter."""

from __future__ import annotations

HELP: dict[str, tuple[str, str]] = {
    "synthetic": (
        "the built-in street world; SRC is '-', nothing is downloaded",
        "num_logs, frames_per_log, seed, ... (data/street/log.py)",
    ),
    "kitti-raw": (
        "KITTI raw, synced+rectified: SRC holds <date>/<date>_drive_<number>_sync",
        "cameras=[image_02,image_03] or [none], val_logs=[<drive>,...], train_list=FILE val_list=FILE depth=FOLDER",
    ),
    "kitti-object": (
        "KITTI object detection: SRC holds training/{velodyne,image_2,calib,label_2}",
        "train_list=FILE val_list=FILE (split lists), or val_every=5; cameras=[none]",
    ),
    "semantickitti": (
        "SemanticKITTI: SRC holds dataset/sequences/NN/{velodyne,labels,calib.txt,poses.txt}; images if there",
        "cameras=[image_2,image_3], or cameras=[none] for sweeps only",
    ),
    "semanticposs": (
        "SemanticPOSS: SRC holds dataset/sequences/NN/{velodyne,labels}, NN from 00 to 05; no images",
        "val_sequences=[2]",
    ),
    "kitti-360": (
        "KITTI-360: SRC holds calibration, data_3d_raw, data_poses, and data_2d_raw for images",
        "cameras=[image_00,image_01] or [none], val_logs=[<drive>,...]",
    ),
    "nuscenes": (
        "nuScenes v1.0: SRC holds v1.0-{trainval,mini,test}, samples, sweeps, lidarseg, panoptic",
        "sweeps=true, split_scheme=slidr, version=v1.0-mini, cameras=[CAM_FRONT], labels=required",
    ),
    "waymo": (
        "Waymo Open Dataset (perception): SRC holds *.tfrecord, or the v2 Parquet folders; or both in training/ ...",
        "returns=both, lasers=[top,...], labels=segmentation or boxes, labelled_only=false, every_frame=1",
    ),
    "once": (
        "ONCE: SRC holds data/<sequence>/{<sequence>.json,lidar_roof,cam01,...} and ImageSets",
        "raw=small|medium|large|all|none, cameras=[cam01,...], undistort=true, intensity_max=1",
    ),
    "pandaset": (
        "PandaSet: SRC holds <sequence>/{lidar,camera,annotations,meta}; pickles are read as data, never run",
        "sensor=pandar64|pandargt|both, cameras=[front_camera,...], split=scalr|openpcdet",
    ),
    "argoverse2": (
        "Argoverse 2 sensor data set: SRC holds {train,val,test}/<log>/{sensors,calibration,...}",
        "cameras=[ring_front_center,...], max_image_gap_ms=60, every_sweep=1",
    ),
    "7scenes": (
        "7-Scenes (RGB-D): SRC holds <scene>/seq-NN/frame-NNNNNN.{color,depth}.png",
        "focal_px=585, every_pixel=2, max_depth_m=10",
    ),
    "nyu": (
        "NYU Depth v2 as works on depth unpack it: SRC holds sync/<scene> and official_splits/test/<scene>",
        "train=sync|labelled, every_frame=1, every_pixel=2, max_depth_m=10",
    ),
    "sunrgbd": ("SUN RGB-D in VoteNet's layout: SRC holds {image,depth,calib,label}/NNNNNN.*", "every_point=4"),
    "scannet": (
        "ScanNet: SRC holds scene<room>_<visit>/{color,depth,pose,intrinsic}, or VoteNet's scene*_vert.npy",
        "every_frame=20, every_pixel=2, max_depth_m=10, meshes=true (of whole scans as released)",
    ),
    "s3dis": (
        "S3DIS (aligned v1.2): SRC holds Area_N/<room>/Annotations/<class>_<number>.txt",
        "grid_m=0.02, val_areas=[5]",
    ),
    "rosbag": (
        "bags of ROS 1 and ROS 2 (docs/recordings.md): SRC is a .bag, a bag's folder, or a folder of them",
        "topics=FILE.yaml (of tandem inspect), cameras=[...] or [none], val_logs=[...], intensity_max=255, deskew=true",
    ),
    "mcap": (
        "MCAP files of ROS 2 or with Foxglove's schemas (docs/recordings.md): SRC is an .mcap, or a folder of them",
        "topics=FILE.yaml (of tandem inspect), cameras=[...] or [none], val_logs=[...], intensity_max=255, deskew=true",
    ),
    "custom": (
        "your own logs (docs/custom_data.md): SRC holds <log>/{calibration.json,poses.csv,lidar,cameras}",
        "cameras=[...] or [none], val_logs=[...], columns=[x,y,z,intensity], max_image_gap_ms=60",
    ),
    "pcd": (
        "the same with point cloud files (docs/recordings.md): SRC holds <log>/lidar/<timestamp_us>.pcd, .las or .laz",
        "intensity=FIELD or none, viewpoint=sensor|cloud, deskew=true, keep_times=true; and those of custom",
    ),
    "las": (
        "tiles of surveys (docs/recordings.md): SRC holds *.las, *.laz, cut into square blocks",
        "block_m=50, grid_m=0, intensity_max=65535 (0: none), labels=true, codes=[2,5,6], val_logs=[...]",
    ),
}
"""Set -> what the source must be, and the settings most asked for, for the help text."""
