# What CI asks of the PowerShell scripts: every rule that is on by default, and those below. tests/deploy/
# test_deploy_powershell.py asks the same of the syntax tree, as far as it can, where there is no PowerShell.
@{
    IncludeDefaultRules = $true
    ExcludeRules = @(
        # A script exports nothing: its own help has every parameter, and a line above a function says what it is for.
        'PSProvideCommentHelp'
        # Nothing is piped into anyone else's command, so nobody reads the types.
        'PSUseOutputTypeCorrectly'
    )
    Rules = @{
        PSAvoidSemicolonsAsLineTerminators = @{ Enable = $true }
        PSAvoidUsingDoubleQuotesForConstantString = @{ Enable = $true }
        # A parameter may be used only in a block that is handed to one of these.
        PSReviewUnusedParameter = @{ CommandsToTraverse = @('Invoke-Native', 'Use-Environment') }
        PSUseCompatibleSyntax = @{ Enable = $true; TargetVersions = @('7.0') }
    }
}
