from setuptools import find_packages, setup
setup(packages=[*find_packages(include=["attncalc", "attncalc.*"]), "attncalc.models"], package_dir={"attncalc.models": "models"})
