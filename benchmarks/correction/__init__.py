"""Correction at test time: does it put right what scoring flags?"""
