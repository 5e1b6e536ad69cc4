import json


def read_annotations(json_file: str) -> dict:
    with open(json_file, encoding="utf-8-sig") as file:
        return json.load(file)
