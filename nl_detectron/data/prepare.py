def prepare_annotations(json_file: str, image_root: str) -> str:
    return json_file
