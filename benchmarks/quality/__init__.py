"""Quality control: does the predicted Dice find bad masks?"""
