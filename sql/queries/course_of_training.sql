-- Did training go on too long: the epoch that was kept, and how the losses went afterwards?
SELECT
    m.study, m.model, m.fold, m.best_epoch,
    max(e.epoch) AS last_epoch,
    any_value(e.loss) FILTER (e.epoch = m.best_epoch) AS best_loss,
    any_value(e.validation_loss) FILTER (e.epoch = m.best_epoch) AS best_validation_loss,
    arg_max(e.loss, e.epoch) AS last_loss,
    arg_max(e.validation_loss, e.epoch) AS last_validation_loss
FROM models AS m
LEFT JOIN training_epochs AS e USING (study, model, fold)
GROUP BY m.study, m.model, m.fold, m.best_epoch
ORDER BY m.study, m.model, m.fold
