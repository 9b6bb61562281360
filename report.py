"""Report finished runs as tables and plots: python report.py sweep=outputs/ablation/kl_weight, or compare runs=a,b"""

from dalle.cli.report import main

if __name__ == "__main__":
    main()
