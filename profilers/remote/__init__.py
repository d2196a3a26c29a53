"""Devices that hold neither Python nor a tool chain: Android phones by adb, boards by ssh, this computer."""
