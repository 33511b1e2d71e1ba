"""Its being here lets every test import what lies in this folder: `from zoo import ZOO`."""
