"""Readers and writers, one module a file format. Nobody else imports onnx or flatbuffers."""
